package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/fake"
	"launcher/internal/errs"
	"launcher/wire"
)

const soon = time.Minute

// probe counts and shapes the calls that reach a backend.
type probe struct {
	backends.Backend
	caps     func(*backends.Capabilities)
	submits  atomic.Int32
	inside   atomic.Int32 // changes under way
	overlap  atomic.Bool
	statuses atomic.Int32
	onSubmit func(n int32) error
	mu       sync.Mutex
	at       []time.Time
}

func (p *probe) Unwrap() backends.Backend { return p.Backend }

func (p *probe) Capabilities() backends.Capabilities {
	c := p.Backend.Capabilities()
	if p.caps != nil {
		p.caps(&c)
	}
	return c
}

func (p *probe) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	if p.inside.Add(1) > 1 {
		p.overlap.Store(true)
	}
	defer p.inside.Add(-1)
	p.mu.Lock()
	p.at = append(p.at, time.Now())
	p.mu.Unlock()
	n := p.submits.Add(1)
	if p.onSubmit != nil {
		if err := p.onSubmit(n); err != nil {
			return nil, err
		}
	}
	return p.Backend.Submit(ctx, r)
}

func (p *probe) Status(ctx context.Context, h [][]byte) ([]backends.Status, error) {
	p.statuses.Add(1)
	return p.Backend.Status(ctx, h)
}

// fast makes a broker of one backend, with short pauses between tries.
func fast(be backends.Backend) *Broker {
	b := New(Registry{"fake": be}, nil)
	b.backends["fake"].(*retrying).first = time.Millisecond
	return b
}

func pool(o backends.Options) wire.Pool {
	return wire.Pool{Name: "p", Backend: "fake", Labels: map[string]string{"a": "b"}, Options: wire.Marshal(map[string]any(o))}
}

func request(token string, n int) backends.Request {
	r := backends.Request{Token: token, Cluster: "lab"}
	for i := range n {
		r.Nodes = append(r.Nodes, wire.NodeID(fmt.Sprintf("%s-%d", token, i)))
		r.Epochs = append(r.Epochs, 1)
	}
	return r
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name  string
		kind  errs.Kind
		fails int32
		calls int32
		ok    bool
	}{
		{"none", errs.Unknown, 0, 1, true},
		{"comes back", errs.Unavailable, 2, 3, true},
		{"slow", errs.Timeout, 1, 2, true},
		{"for ever", errs.Unavailable, 1000, maxTries, false},
		{"wrong", errs.Invalid, 1000, 1, false},
		{"not allowed", errs.Permission, 1000, 1, false},
		{"unknown", errs.Unknown, 1000, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &probe{Backend: fake.New(fake.NewWorld())}
			p.onSubmit = func(n int32) error {
				if n <= c.fails {
					return errs.New(c.kind, "no luck")
				}
				return nil
			}
			allocs, err := fast(p).Submit(bounded(t), pool(nil), request("t", 2))
			if (err == nil) != c.ok || p.submits.Load() != c.calls {
				t.Fatalf("%d calls, %v, %v", p.submits.Load(), allocs, err)
			}
			if !c.ok && (errs.KindOf(err) != c.kind || !strings.Contains(err.Error(), "pool p") || c.calls > 1 && !strings.Contains(err.Error(), "after 6 tries")) {
				t.Errorf("got %q of kind %s", err, errs.KindOf(err))
			}
		})
	}
}

// A retry of a submission whose answer was lost finds what it made.
func TestLostAnswer(t *testing.T) {
	w := fake.NewWorld()
	w.Script(fake.Script{SubmitError: errs.Timeout, Failures: 1, HalfMade: true})
	allocs, err := fast(fake.New(w)).Submit(bounded(t), pool(nil), request("t", 2))
	if err != nil || len(allocs) != 1 || w.Nodes() != 2 {
		t.Fatalf("%v, %v, %d nodes", allocs, err, w.Nodes())
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	p := &probe{Backend: fake.New(fake.NewWorld())}
	ctx, cancel := context.WithCancel(bounded(t))
	p.onSubmit = func(n int32) error {
		cancel()
		return errs.New(errs.Unavailable, "no luck")
	}
	if _, err := fast(p).Submit(ctx, pool(nil), request("t", 1)); err == nil || p.submits.Load() != 1 {
		t.Errorf("%d calls, %v", p.submits.Load(), err)
	}
}

// Changes wait for each other; questions do not wait for changes.
func TestTurns(t *testing.T) {
	p := &probe{Backend: fake.New(fake.NewWorld())}
	b := fast(p)
	hold := make(chan struct{})
	entered := make(chan struct{}, 8)
	p.onSubmit = func(int32) error { entered <- struct{}{}; <-hold; return nil }
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := b.Submit(bounded(t), pool(nil), request(fmt.Sprint("t", i), 1)); err != nil {
				t.Error(err)
			}
		})
	}
	<-entered
	if st, err := b.Status(bounded(t), pool(nil), [][]byte{[]byte("x")}); err != nil || st[0].State != backends.Lost {
		t.Errorf("status beside a slow submission: %v, %v", st, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Cancel(ctx, pool(nil), [][]byte{[]byte("x")}, false); !errs.Is(err, errs.Timeout) {
		t.Errorf("cancel behind a slow submission: %v", err)
	}
	close(hold)
	wg.Wait()
	if p.overlap.Load() {
		t.Error("two submissions at once")
	}
}

func TestRateLimit(t *testing.T) {
	const every = 30 * time.Millisecond
	p := &probe{Backend: fake.New(fake.NewWorld()), caps: func(c *backends.Capabilities) { c.Every = every }}
	b := fast(p)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := b.Submit(bounded(t), pool(nil), request(fmt.Sprint("t", i), 1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d := p.at[3].Sub(began); d < 3*every { // what is late makes it more
		t.Errorf("four calls within %s", d)
	}
}

func TestRequestsAreFilledIn(t *testing.T) {
	var got backends.Request
	w := fake.NewWorld()
	w.Start = func(r backends.Request, i int) { got = r }
	b := fast(fake.New(w))
	p := pool(backends.Options{"pending": "1ms"})
	p.Resources, p.Share = &wire.Resources{CPU: 2 * wire.Unit}, "yield"
	if _, err := b.Submit(bounded(t), p, request("t", 1)); err != nil {
		t.Fatal(err)
	}
	if got.Pool != "p" || got.Options["pending"] != "1ms" || got.Labels["a"] != "b" || got.Resources.CPU != 2*wire.Unit || got.Share != "yield" {
		t.Errorf("request %+v", got)
	}
	for _, bad := range []backends.Request{{Token: "t"}, {Nodes: []wire.NodeID{"a"}, Epochs: []wire.Epoch{1}}, {Token: "t", Nodes: []wire.NodeID{"a"}}} {
		if _, err := b.Submit(bounded(t), p, bad); !errs.Is(err, errs.Internal) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := b.Submit(bounded(t), p, request("many", 65)); !errs.Is(err, errs.Invalid) {
		t.Errorf("more than one call takes: %v", err)
	}
	p.Backend = "punch-cards"
	if _, err := b.Submit(bounded(t), p, request("t", 1)); !errs.Is(err, errs.Unbuilt) || !strings.Contains(errs.Lines(err), "there are: fake") {
		t.Errorf("an unknown backend: %v", err)
	}
	p = pool(nil)
	p.Options = []byte{0xc1}
	if _, err := b.Submit(bounded(t), p, request("t", 1)); !errs.Is(err, errs.Corrupt) {
		t.Errorf("corrupt options: %v", err)
	}
}

// bounder has a limit that depends on what nodes are said to have.
type bounder struct{ probe }

func (b *bounder) Bound(o backends.Options, per *wire.Resources) (int, string) {
	if per != nil {
		return 100, "100 at most"
	}
	return 2, "there are 2 cores"
}
func (b *bounder) NodesKey() string { return "nodes" }

func TestCheckAndLimit(t *testing.T) {
	b := fast(fake.New(fake.NewWorld()))
	p := pool(backends.Options{"limit": int64(3), "pending": "now"})
	if f := b.Check(p); len(f) != 1 || f[0].Key != "pending" {
		t.Errorf("faults %+v", f)
	}
	p = pool(backends.Options{"limit": int64(3)})
	if n, why := b.Limit(p); n != 3 || why == "" {
		t.Errorf("limit %d, %q", n, why)
	}
	for _, c := range []struct {
		min, max int
		key      string
	}{{0, 3, ""}, {3, 0, ""}, {0, 4, "max"}, {4, 0, "min"}} {
		p.Min, p.Max = c.min, c.max
		f := b.Check(p)
		if c.key == "" && len(f) > 0 || c.key != "" && (len(f) != 1 || f[0].Key != c.key) {
			t.Errorf("min %d, max %d: %+v", c.min, c.max, f)
		}
	}
	b = fast(&bounder{probe{Backend: fake.New(fake.NewWorld())}})
	p = pool(nil)
	p.Min, p.Max = 40, 40
	if f := b.Check(p); len(f) != 1 || f[0].Key != "nodes" || f[0].Msg != "there are 2 cores" {
		t.Errorf("faults %+v", f)
	}
	p.Resources = &wire.Resources{CPU: wire.Unit}
	if f := b.Check(p); len(f) != 0 {
		t.Errorf("with resources: %+v", f)
	}
	p.Backend = "punch-cards"
	if f := b.Check(p); len(f) != 1 || f[0].Key != "backend" {
		t.Errorf("faults %+v", f)
	}
}

func TestDryRun(t *testing.T) {
	var out bytes.Buffer
	r := request("", 2)
	r.Join.Key = []byte("SECRET")
	if err := fast(fake.New(fake.NewWorld())).DryRun(pool(nil), r, &out); err != nil || !strings.Contains(out.String(), "--token DRY-RUN") || strings.Contains(out.String(), "SECRET") {
		t.Errorf("%v: %s", err, &out)
	}
}

// blind hides that the backend can tell of ends by itself.
type blind struct{ backends.Backend }

func TestWatch(t *testing.T) {
	for name, hide := range map[string]bool{"tells": false, "is asked": true} {
		t.Run(name, func(t *testing.T) {
			w := fake.NewWorld()
			var be backends.Backend = fake.New(w)
			if hide {
				be = blind{be}
			}
			b := New(Registry{"fake": be}, slog.New(slog.DiscardHandler))
			allocs, err := b.Submit(bounded(t), pool(nil), request("t", 2))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(bounded(t))
			changed, done := make(chan int), make(chan error, 1)
			h := [][]byte{[]byte("unknown"), allocs[0].Handle}
			go func() { done <- b.Watch(ctx, pool(nil), h, changed) }()
			w.Kill("t-0")
			for dead := false; !dead; {
				select {
				case i := <-changed:
					if i != 1 {
						continue
					}
					st, err := b.Status(ctx, pool(nil), h)
					dead = err == nil && len(st[1].DeadNodes) == 1 && st[0].State == backends.Lost
				case <-time.After(soon):
					t.Fatal("nobody tells of a node's death")
				}
			}
			cancel()
			for waiting := true; waiting; {
				select {
				case <-changed:
				case err := <-done:
					waiting = false
					if err != nil {
						t.Error(err)
					}
				case <-time.After(soon):
					t.Fatal("the watch does not end")
				}
			}
		})
	}
	b := New(Registry{}, nil)
	if err := b.Watch(bounded(t), pool(nil), nil, nil); !errs.Is(err, errs.Unbuilt) {
		t.Errorf("got %v", err)
	}
}

type unclosable struct{ backends.Backend }

func (unclosable) Close() error { return errors.New("stuck") }

func TestClose(t *testing.T) {
	if err := New(Registry{"a": fake.New(fake.NewWorld()), "b": unclosable{fake.New(fake.NewWorld())}}, nil).Close(); err == nil {
		t.Error("an error was lost")
	}
}
