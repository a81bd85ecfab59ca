package core

import (
	"slices"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

func TestMergePlaces(t *testing.T) {
	for _, c := range []struct{ old, next, want []string }{
		{nil, []string{"a", "b"}, []string{"a", "b"}},
		{[]string{"a", "b", "c"}, []string{"a", "c"}, []string{"a", "", "c"}},
		{[]string{"a", "", "c"}, []string{"c", "a", "d", "e"}, []string{"a", "d", "c", "e"}},
		{[]string{"a", "b"}, []string{"a"}, []string{"a"}},
		{[]string{"a"}, nil, nil},
	} {
		if got := mergePlaces(c.old, c.next); !slices.Equal(got, c.want) {
			t.Errorf("%q with %q: %q, wanted %q", c.old, c.next, got, c.want)
		}
	}
}

// machines is a core with one pool of three machines, and what it asks for.
func machines(t *testing.T, places ...string) (*Core, []SubmitNodes) {
	t.Helper()
	c := New(Config{Cluster: "lab", Nonce: "n", Pools: []wire.Pool{{Name: "box", Backend: "ssh", Min: 1, Max: len(places), Places: places}}}, NewDurable(nil))
	return c, asks(c.Step(second, Start{}))
}

func asks(o Output) (out []SubmitNodes) {
	for _, e := range o.Effects {
		if s, ok := e.(SubmitNodes); ok {
			out = append(out, s)
		}
	}
	return out
}

func TestMachinesAreAskedForOneByOne(t *testing.T) {
	c, first := machines(t, "a", "b", "c")
	if len(first) != 3 {
		t.Fatalf("asked %d times for three machines: %+v", len(first), first)
	}
	for i, s := range first {
		if want := []string{"a", "b", "c"}[i]; len(s.Nodes) != 1 || !slices.Equal(s.Places, []string{want}) {
			t.Errorf("submission %d: %+v, wanted machine %s", i, s, want)
		}
	}
	// One fails: it is said which, the others are still coming, and only it is asked again.
	fail := errs.New(errs.Unavailable, "b is away")
	c.Step(2*second, Submitted{Token: first[1].Token, Err: fail})
	o := c.Step(2*second, Found{Pool: "box", Tokens: []string{first[1].Token}, Allocs: map[string][]Alloc{}})
	again := asks(o)
	for now := int64(3) * second; len(again) == 0 && now < 10*second; now += second {
		again = asks(c.Step(now, Tick{}))
	}
	if len(again) != 1 || !slices.Equal(again[0].Places, []string{"b"}) || again[0].Epochs[0] != 2 {
		t.Fatalf("asked again for %+v, wanted b alone in its second life", again)
	}
	p := c.poolInfos()[0]
	if p.Failed != 1 || p.Pending != 2 || len(p.Failures) != 1 || p.Failures[0].Place != "b" || p.Failures[0].Why != "b is away" || p.Failures[0].Final {
		t.Errorf("pool: %+v", p)
	}
	// The same again, for good.
	c.Step(11*second, Submitted{Token: again[0].Token, Err: errs.New(errs.Permission, "b takes no key")})
	c.Step(11*second, Found{Pool: "box", Tokens: []string{again[0].Token}, Allocs: map[string][]Alloc{}})
	if p := c.poolInfos()[0]; !p.Failures[0].Final || p.Failures[0].Tries != 2 {
		t.Errorf("pool after a refusal: %+v", p)
	}
}

func TestMachinesOfAChangedSpec(t *testing.T) {
	c, first := machines(t, "a", "b", "c")
	for i, s := range first {
		c.Step(2*second, Submitted{Token: s.Token, Allocs: []Alloc{{Handle: []byte(s.Token), Nodes: s.Nodes}}})
		c.Step(2*second, AgentUp{Node: s.Nodes[0], Epoch: 1, Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}, Host: []string{"a", "b", "c"}[i]}})
	}
	o := c.Step(3*second, ClientReq{ID: 1, Req: wire.Update{Apply: true, Pools: []wire.Pool{{Name: "box", Backend: "ssh", Min: 1, Max: 3, Places: []string{"a", "c", "d"}}}}})
	var a wire.UpdateAnswer
	for _, e := range o.Effects {
		if r, ok := e.(Reply); ok {
			a = r.Resp.(wire.UpdateAnswer)
		}
	}
	if !slices.Equal(a.Removes, []wire.NodeID{"box-1"}) {
		t.Errorf("removes %v, wanted the node of b alone; %q", a.Removes, a.Changes)
	}
	if got := c.d.st.Pools[0].Places; !slices.Equal(got, []string{"a", "d", "c"}) {
		t.Errorf("machines are at %q", got)
	}
}

// TestRetry: with somebody there to be asked, no machine waits for its next try, and what
// it failed of before does not count.
func TestRetry(t *testing.T) {
	c, first := machines(t, "a")
	token, now := first[0].Token, 2*second
	for range 6 { // the next try is half a minute away
		c.Step(now, Submitted{Token: token, Err: errs.New(errs.Permission, "a must be asked something")})
		again := asks(c.Step(now, Found{Pool: "box", Tokens: []string{token}, Allocs: map[string][]Alloc{}}))
		for ; len(again) == 0; now += second {
			again = asks(c.Step(now, Tick{}))
		}
		token = again[0].Token
	}
	c.Step(now, Submitted{Token: token, Err: errs.New(errs.Permission, "a must be asked something")})
	c.Step(now, Found{Pool: "box", Tokens: []string{token}, Allocs: map[string][]Alloc{}})
	if o := asks(c.Step(now+10*second, Tick{})); len(o) != 0 {
		t.Fatalf("asked for again at once: %+v", o)
	}
	if o := asks(c.Step(now+10*second, Retry{})); len(o) != 1 {
		t.Errorf("asked for %+v, wanted the machine again", o)
	}
	if p := c.poolInfos()[0]; p.Failed != 0 || p.Pending != 1 || len(p.Failures) != 0 {
		t.Errorf("pool: %+v", p)
	}
	// A try that was under way fails of what was so before: it is made again at once.
	o := asks(c.Step(now+11*second, Retry{}))
	for token := range c.d.st.Subs {
		c.Step(now+11*second, Submitted{Token: token, Err: errs.New(errs.Permission, "a must be asked something")})
		o = append(o, asks(c.Step(now+11*second, Found{Pool: "box", Tokens: []string{token}, Allocs: map[string][]Alloc{}}))...)
	}
	if p := c.poolInfos()[0]; len(o) != 1 || p.Failed != 0 || p.Pending != 1 || len(p.Failures) != 0 {
		t.Errorf("asked for %+v; pool: %+v", o, p)
	}
}

// TestMachinesLeft: down ends though a machine does not say that its node has ended, and
// names it.
func TestMachinesLeft(t *testing.T) {
	c, first := machines(t, "a", "b")
	for i, s := range first {
		c.Step(2*second, Submitted{Token: s.Token, Allocs: []Alloc{{Handle: []byte{byte(i)}, Nodes: s.Nodes}}})
	}
	c.Step(3*second, ClientReq{ID: 1, Req: wire.Down{}})
	end := func(h byte, s AllocState) Event {
		return AllocStatus{Pool: "box", Items: []AllocItem{{Handle: []byte{h}, State: s}}}
	}
	c.Step(4*second, end(0, AllocDone))
	for now := int64(5) * second; now < 120*second; now += second {
		for _, e := range c.Step(now, end(1, AllocRunning)).Effects {
			if d, ok := e.(CloseDown); ok {
				if !slices.Equal(d.Left, []string{"b (box-1)"}) {
					t.Errorf("left: %q", d.Left)
				}
				return
			}
		}
	}
	t.Error("down does not end")
}

// TestNeedsSockets: which gangs must be on nodes that reach each other.
func TestNeedsSockets(t *testing.T) {
	for _, s := range []wire.JobSpec{{Command: []string{"/opt/bin/torchrun", "x.py"}}, {Command: []string{"python", "-m", "torch.distributed.run"}},
		{Command: []string{"sh", "-c", "x --to $MASTER_ADDR"}}, {Env: []string{"MASTER_ADDR="}}, {Sockets: true}} {
		if !needsSockets(&s) {
			t.Errorf("%+v opens sockets", s)
		}
	}
	if s := (wire.JobSpec{Command: []string{"python", "train.py"}, Env: []string{"X=1"}}); needsSockets(&s) {
		t.Errorf("%+v opens none", s)
	}
}
