import torch
from depfuse.merge.refit.walk import Walk
def group_of(groups,unit):
    key=unit.norm.weight if unit.norm is not None else (unit.bias or unit.weight)
    found=[]
    for g in groups.free:
        for s in g.slots:
            if s.key==key and s.axis==0 and s.role!='consumes': found.append((g,s)); break
    return found
def zip_targets(models,groups,r,calibration,opt):
    globals()['DD']={}
    P=len(models)
    cov={g.name:0 for g in groups.free}; mean={g.name:0 for g in groups.free}; cnt={g.name:0 for g in groups.free}
    walk=Walk(r.program,[m.state_dict() for m in models],calibration.first(opt.get('images',500)),limit=0)
    gen=torch.Generator().manual_seed(0)
    targets={u.target:u for u in r.units}
    covs={g.name:[] for g in groups.free}
    with torch.inference_mode():
        acc={}
        for values in walk.until([len(r.program.nodes)]*P,list(targets)):
            for u in r.units:
                vs=[v[u.target] for v in values]
                if u.rectified: vs=[v.relu() for v in vs]
                for g,s in group_of(groups,u):
                    if s.index.shape[1]!=1: continue
                    x=torch.cat([v.movedim(1,-1).reshape(-1,v.shape[1])[:,s.index[:,0]] for v in vs],1)
                    n=len(x); m=x.mean(0); c=(x-m).T@(x-m)/n
                    a=acc.setdefault((g.name,u.name),[0,0,0]); a[0]+=1; a[1]=a[1]+m.double(); a[2]=a[2]+(c+torch.outer(m,m)).double()
        for (gn,un),(k,m,s2) in acc.items():
            m=m/k; c=s2/k-torch.outer(m,m)
            covs[gn].append((un,c))
    sens={}
    if opt.get('imp'):
        n=opt.get('gimages',250)
        batches=[b[:walk.size] for b,_ in calibration][:max(1,n//walk.size)]
        for p,m in enumerate(models):
            st={k:v.detach().clone() for k,v in m.state_dict().items()}
            ends={(list(u.target.users)[0] if u.rectified else u.target):u for u in r.units}
            for x in batches:
                with torch.enable_grad():
                    vals={r.program.images:x.clone().requires_grad_(True)}; keep={}
                    for node in r.program.nodes:
                        vals[node]=r.program.call(node,st,vals)
                        if node in ends: vals[node].retain_grad() if vals[node].requires_grad else None; keep[node]=vals[node]
                    out=vals[r.program.output]
                    probe=(torch.randint(0,2,out.shape,generator=gen)*2-1).float()
                    if opt['imp']=='fisher':
                        pr=out.detach().softmax(1); y=torch.multinomial(pr,1,generator=gen)[:,0]
                        torch.nn.functional.cross_entropy(out,y,reduction='sum').backward()
                    else: ((out-out.mean(1,keepdim=True))*probe).sum().backward()
                for node,v in keep.items():
                    if v.grad is None: continue
                    g2=v.grad.movedim(1,-1).reshape(-1,v.shape[1]).square().mean(0)
                    a=sens.setdefault((ends[node].name,p),0); sens[ends[node].name,p]=a+g2.double()
    plans={}
    for g in groups.free:
        if not covs[g.name]: continue
        C=g.size
        tot=0
        for un,c in covs[g.name]:
            w=1.0
            sc=opt.get('scale','corr')
            if opt.get('imp'):
                u=[u for u in r.units if u.name==un][0]
                sl=[s for g2,s in group_of(groups,u) if g2.name==g.name][0].index[:,0]
                d=torch.cat([sens[un,p][sl] for p in range(P)]).clamp_min(1e-20)
                d=d**(opt.get('power',1)/2)
                c2=c*d[:,None]*d
                v=c2.diagonal().reshape(P,C).mean(1).sqrt().repeat_interleave(C) if opt.get('pp',1) else c2.diagonal().mean().sqrt().repeat(P*C)
                tot=tot+c2/v[:,None]/v; dd=globals().setdefault('DD',{}); dd[g.name]=dd.get(g.name,0)+d/v.double(); continue
            if sc=='corr':
                d=c.diagonal().clamp_min(1e-12).rsqrt(); tot=tot+c*d[:,None]*d
            elif sc=='cov':
                # normalise per parent total variance
                v=c.diagonal().reshape(P,C).mean(1).sqrt().repeat_interleave(C); tot=tot+c/v[:,None]/v
        tot=tot/len(covs[g.name])
        plans[g.name]=cluster(tot,C,opt,(DD[g.name]/len(covs[g.name]) if opt.get('imp') else None))
    mixes={}
    for u in r.units:
        fs=group_of(groups,u)
        size=u.end.meta['val'].shape[1]
        ms=[torch.eye(size)*w for w in r.shares]
        for g,s in fs:
            if g.name not in plans or s.index.shape[1]!=1: continue
            pl=plans[g.name].float(); i=s.index[:,0]
            for p in range(P):
                ms[p][i]=0
                ms[p][i[:,None],i]=pl[:,p*g.size:(p+1)*g.size]
        mixes[u.name]=ms
    return mixes
def cluster(K,C,opt,d=None):
    N=len(K)
    members=[[i] for i in range(N)]
    def top(idx):
        sub=K[idx][:,idx]
        e,v=torch.linalg.eigh(sub)
        return float(sub.diagonal().sum()-e[-1]), v[:,-1]
    mode=opt.get('cluster','pairs')
    if mode=='pairs': # greedy pairs by correlation
        D=K.clone(); D.fill_diagonal_(-9)
        if opt.get('cross'): # only across parents
            P=N//C
            for p in range(P): D[p*C:(p+1)*C,p*C:(p+1)*C]=-9
        alive=set(range(N)); groups=[]
        for _ in range(N-C):
            k=int(D.argmax()); i,j=k//N,k%N
            groups.append([i,j]); 
            D[[i,j]]=-9; D[:,[i,j]]=-9; alive-={i,j}
        groups+= [[i] for i in alive]
        assert len(groups)==C
    elif mode=='ward':
        loss=[0.0]*N; groups=members
        import itertools
        cost={}
        ids=list(range(N)); gid={i:[i] for i in ids}; gl={i:0.0 for i in ids}; nxt=N
        def pair(a,b):
            return top(gid[a]+gid[b])[0]-gl[a]-gl[b]
        # initial pairs closed form
        d=K.diagonal(); 
        lam=(d[:,None]+d)/2+(((d[:,None]-d)/2)**2+K**2).sqrt()
        base=(d[:,None]+d-lam); base[K<0]=torch.maximum(base,torch.minimum(d[:,None].expand_as(K),d.expand_as(K)))[K<0]
        for a,b in itertools.combinations(ids,2): cost[a,b]=float(base[a,b])
        while len(gid)>C:
            (a,b)=min(cost,key=cost.get)
            new=gid.pop(a)+gid.pop(b)
            cost={k:v for k,v in cost.items() if a not in k and b not in k}
            lim=opt.get('max',99)
            gid[nxt]=new; gl[nxt]=top(new)[0]; gl.pop(a); gl.pop(b)
            if len(new)<lim:
                for o in gid:
                    if o!=nxt and len(gid[o])+len(new)<=lim: cost[o,nxt]=pair(o,nxt)
            nxt+=1
        groups=list(gid.values())
    groups.sort(key=min)
    M=torch.zeros(C,N,dtype=K.dtype)
    for r,idx in enumerate(groups):
        w=torch.ones(len(idx),dtype=K.dtype)
        if opt.get('pc') and len(idx)>1:
            w=top(idx)[1]; w=(w*torch.sign(w.sum())).clamp_min(0)
            if d is not None: w=w*d[idx]
            w=w*len(idx)/w.sum()
        M[r,idx]=w/(len(idx) if opt.get('mean',1) else len(idx)**.5)
    return M
