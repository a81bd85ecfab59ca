package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"launcher/backends"
	"launcher/backends/all"
	sshdial "launcher/backends/ssh/dial"
	"launcher/broker"
	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

// newBroker knows every backend of this version.
func newBroker(home string) *broker.Broker {
	return broker.New(all.Backends(home, sshdial.Options{}), nil)
}

// checkBackends lets each backend look at its pools' own keys, before anything is started.
func checkBackends(cl *configs.Cluster, h string) error {
	b := newBroker(h)
	defer b.Close()
	var faults configs.Faults
	for i, p := range cl.WirePools() {
		for _, f := range b.Check(p) {
			key := "pool"
			if f.Key != "" {
				key += "." + f.Key
			}
			faults = append(faults, configs.Fault{File: cl.Path, Line: cl.Pools[i].Line, Key: key, Msg: f.Msg})
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &errs.Error{Kind: errs.Invalid, Err: faults}
}

// asked is how many nodes of a pool `up` asks for: its minimum, or all of its machines.
func asked(p wire.Pool) int {
	if len(p.Places) > 0 && p.Idle == 0 {
		return min(len(p.Places), p.Max)
	}
	return p.Min
}

// dryRunPool asks for particular machines one by one, as the head does.
func dryRunPool(b *broker.Broker, p wire.Pool, r backends.Request, w io.Writer) error {
	if len(p.Places) == 0 {
		return b.DryRun(p, r, w)
	}
	for i, id := range r.Nodes {
		one := r
		one.Nodes, one.Epochs, one.Places = []wire.NodeID{id}, r.Epochs[i:i+1], p.Places[i:i+1]
		if err := b.DryRun(p, one, w); err != nil {
			return err
		}
	}
	return nil
}

// loadSpec reads a cluster spec that this version can bring up, and finds the state directory.
func loadSpec(path string) (cl *configs.Cluster, h string, err error) {
	if cl, err = configs.LoadCluster(path); err != nil {
		return nil, "", err
	}
	if h, err = home(); err != nil {
		return nil, "", err
	}
	return cl, h, checkBackends(cl, h)
}

// dryRun prints what up would send to each backend.
func (a *app) dryRun(spec string) error {
	cl, h, err := loadSpec(spec)
	if err != nil {
		return err
	}
	bin, err := executable()
	if err != nil {
		return err
	}
	b := newBroker(h)
	defer b.Close()
	var pools []doc
	for _, p := range cl.WirePools() {
		var text strings.Builder
		if n := max(asked(p), min(1, p.Max)); n > 0 { // also what work will need
			r := backends.Request{Cluster: cl.Name, Home: h, Binary: bin, Grace: int64(cl.Grace), Memory: cl.ObjectMemory, Spill: cl.Spill,
				Join: backends.Join{Addrs: []string{"HEAD:PORT"}, CA: []byte("(the cluster's certificate)"), Key: []byte("(a key for this submission)")}}
			for n := range n {
				r.Nodes = append(r.Nodes, wire.NodeID(fmt.Sprintf("%s-%d", p.Name, n)))
				r.Epochs = append(r.Epochs, 1)
			}
			if err := dryRunPool(b, p, r, &text); err != nil {
				return err
			}
		}
		pools = append(pools, doc{"name": p.Name, "backend": p.Backend, "nodes": asked(p), "sends": text.String()})
		if !a.json {
			later := ""
			if asked(p) == 0 {
				later = "; for work that needs one, this"
			}
			fmt.Fprintf(a.out, "# pool %s, backend %s: %s%s\n%s", p.Name, p.Backend, plural(asked(p), "node"), later, text.String())
		}
	}
	if a.json {
		a.printJSON(doc{"cluster": cl.Name, "pools": slices.Clip(pools)})
	}
	return nil
}
