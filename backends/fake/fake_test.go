package fake

import (
	"fmt"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/backendtest"
	"launcher/internal/errs"
	"launcher/wire"
)

func request(pool string, next *int) func(t *testing.T, token string, n int) backends.Request {
	return func(t *testing.T, token string, n int) backends.Request {
		r := backends.Request{Token: token, Cluster: "lab", Pool: pool, Options: backends.Options{}}
		for range n {
			r.Nodes = append(r.Nodes, wire.NodeID(fmt.Sprintf("%s-%d", pool, *next)))
			r.Epochs = append(r.Epochs, 1)
			*next++
		}
		return r
	}
}

func TestLaws(t *testing.T) {
	for _, s := range []Script{{}, {Pending: 20 * time.Millisecond}, {Delay: 5 * time.Millisecond}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			w := NewWorld()
			w.Script(s)
			next := 0
			backendtest.Run(t, backendtest.Harness{
				Open:    func(*testing.T) backends.Backend { return New(w) },
				Request: request("fake", &next),
				Nodes:   func(*testing.T) int { return w.Nodes() },
				Kill:    func(_ *testing.T, a backends.Alloc) { w.Kill(a.Nodes[0]) },
				Good:    []backends.Options{{}, {"pending": "5ms", "submit_error": "unavailable", "failures": int64(2), "limit": int64(3)}},
				Bad:     []backends.Options{{"pending": "soon", "sumbit_error": "x"}, {"submit_error": "bad luck", "failures": "many"}, {"half_made": 3}},
				BadSubmit: func(t *testing.T, token string) backends.Request {
					r := request("fake", &next)(t, token, 1)
					r.Options = backends.Options{"submit_error": "exhausted"}
					return r
				},
				Bound: time.Minute,
			})
		})
	}
}

// An answer that got lost: the submission failed, and yet there it is.
func TestHalfMade(t *testing.T) {
	w := NewWorld()
	w.Script(Script{SubmitError: errs.Timeout, Failures: 1, HalfMade: true})
	b, next := New(w), 0
	r := request("p", &next)(t, "t", 2)
	if _, err := b.Submit(t.Context(), r); !errs.Is(err, errs.Timeout) {
		t.Fatalf("got %v", err)
	}
	found, err := b.Find(t.Context(), "lab", []string{"t"})
	if err != nil || len(found["t"]) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	again, err := b.Submit(t.Context(), r)
	if err != nil || string(again[0].Handle) != string(found["t"][0].Handle) || w.Nodes() != 2 {
		t.Fatalf("again %v, %v, %d nodes", again, err, w.Nodes())
	}
}

func TestScriptedEnds(t *testing.T) {
	for _, c := range []struct {
		s    Script
		want backends.AllocState
	}{
		{Script{DiesAfter: 20 * time.Millisecond}, backends.Failed},
		{Script{LostAfter: 20 * time.Millisecond}, backends.Lost},
	} {
		w := NewWorld()
		w.Script(c.s)
		stopped := make(chan wire.NodeID, 2)
		w.Stop = func(id wire.NodeID) { stopped <- id }
		b, next := New(w), 0
		a, err := b.Submit(t.Context(), request("p", &next)(t, "t", 2))
		if err != nil {
			t.Fatal(err)
		}
		changed := make(chan int, 8)
		done := make(chan error, 1)
		go func() { done <- b.Watch(t.Context(), [][]byte{a[0].Handle}, changed) }()
		for state := backends.Pending; !state.Ended(); {
			select {
			case <-changed:
			case <-time.After(time.Minute):
				t.Fatal("no end")
			}
			st, _ := b.Status(t.Context(), [][]byte{a[0].Handle})
			if state = st[0].State; state.Ended() && state != c.want {
				t.Errorf("ended as %d, wanted %d", state, c.want)
			}
		}
		if len(stopped) != 2 {
			t.Errorf("%d nodes stopped, wanted 2", len(stopped))
		}
	}
}

func TestPartOfAnAllocation(t *testing.T) {
	w := NewWorld()
	b, next := New(w), 0
	a, err := b.Submit(t.Context(), request("p", &next)(t, "t", 2))
	if err != nil {
		t.Fatal(err)
	}
	w.Kill("p-1")
	st, _ := b.Status(t.Context(), [][]byte{a[0].Handle})
	if st[0].State != backends.Running || len(st[0].DeadNodes) != 1 || st[0].DeadNodes[0] != "p-1" {
		t.Errorf("got %+v", st[0])
	}
	w.Kill("p-0")
	if st, _ = b.Status(t.Context(), [][]byte{a[0].Handle}); st[0].State != backends.Lost {
		t.Errorf("got %+v", st[0])
	}
}
