package broker

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/fake"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// away is a head with a Remote, and how brokers reach it.
type away struct {
	*testing.T
	r     *Remote
	path  string
	moves chan bool
}

func newAway(t *testing.T) *away {
	t.Helper()
	a := &away{T: t, path: filepath.Join(t.TempDir(), "head.sock"), moves: make(chan bool, 100)}
	a.r = NewRemote(nil)
	ln, err := sockpath.Listen(a.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- session.ServeUnix(ctx, ln, session.Config{Cluster: "lab", Role: secure.RoleHead, Name: "head"}, func(ctx context.Context, s *session.Session) {
			kind, st, err := s.Accept(ctx)
			if err != nil || kind != wire.StreamBroker {
				return
			}
			a.r.Attach(ctx, s, st, func(here bool) { a.moves <- here })
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return a
}

// serve connects a broker; stop cuts it off.
func (a *away) serve(b *Broker, w Where) (stop func()) {
	a.Helper()
	s, err := session.DialUnix(bounded(a.T), a.path, session.Config{Role: secure.RoleClient, Name: "link"})
	if err != nil {
		a.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.ServeHead(ctx, s, w) }()
	stop = sync.OnceFunc(func() { s.Close(); cancel(); <-done })
	a.Cleanup(stop)
	a.moved(true)
	return stop
}

func (a *away) moved(want bool) {
	a.Helper()
	select {
	case got := <-a.moves:
		if got != want {
			a.Fatalf("the broker is here: %v, want %v", got, want)
		}
	case <-time.After(soon):
		a.Fatalf("nobody said that the broker is here: %v", want)
	}
}

func TestRemoteCalls(t *testing.T) {
	a := newAway(t)
	p := pool(nil)
	if _, err := a.r.Submit(bounded(t), p, request("t1", 2)); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("with no broker: %v", err)
	}
	be := &probe{Backend: fake.New(fake.NewWorld())}
	var got backends.Request
	b := fast(&seen{Backend: be, got: &got})
	stop := a.serve(b, Where{Home: "/laptop/home", Binary: "/laptop/launcher", Host: "laptop"})
	req := request("t1", 2)
	req.Home, req.Binary = "/host/home", "/host/launcher"
	req.Join = backends.Join{Addrs: []string{"10.0.0.1:1"}, CA: []byte("ca"), Key: []byte("key")}
	allocs, err := a.r.Submit(bounded(t), p, req)
	if err != nil || len(allocs) == 0 {
		t.Fatal(allocs, err)
	}
	if got.Home != "/laptop/home" || got.Binary != "/laptop/launcher" {
		t.Errorf("the backend was given the head's paths: %s %s", got.Home, got.Binary)
	}
	if string(got.Join.Key) != "key" || got.Labels["a"] != "b" || len(got.Nodes) != 2 {
		t.Errorf("the backend was given %+v", got)
	}
	found, err := a.r.Find(bounded(t), p, "lab", []string{"t1", "t2"})
	if err != nil || len(found["t1"]) != len(allocs) || len(found["t2"]) != 0 {
		t.Error(found, err)
	}
	var handles [][]byte
	for _, al := range allocs {
		handles = append(handles, al.Handle)
	}
	ctx, cancel := context.WithCancel(bounded(t))
	changed, watched := make(chan int, 100), make(chan error, 1)
	go func() { watched <- a.r.Watch(ctx, p, handles, changed) }()
	st, err := a.r.Status(bounded(t), p, handles)
	if err != nil || len(st) != len(handles) || st[0].State.Ended() {
		t.Error(st, err)
	}
	if err := a.r.Cancel(bounded(t), p, handles, false); err != nil {
		t.Error(err)
	}
	select {
	case <-changed:
	case <-time.After(soon):
		t.Error("the end of an allocation was not told")
	}
	cancel()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if _, err := a.r.Submit(bounded(t), wire.Pool{Name: "q", Backend: "none"}, request("t3", 1)); !errs.Is(err, errs.Unbuilt) {
		t.Errorf("an error lost its kind: %v", err)
	}
	stop()
	a.moved(false)
	if _, err := a.r.Status(bounded(t), p, handles); !errs.Is(err, errs.Unavailable) {
		t.Errorf("with the broker gone: %v", err)
	}
}

type seen struct {
	backends.Backend
	got *backends.Request
}

func (s *seen) Unwrap() backends.Backend { return s.Backend }

func (s *seen) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	*s.got = r
	return s.Backend.Submit(ctx, r)
}

// TestRemoteCut: a call that is under way when the broker goes fails with what may be
// tried again, and the broker that comes back is asked.
func TestRemoteCut(t *testing.T) {
	a := newAway(t)
	entered, hold := make(chan struct{}), make(chan struct{})
	be := &probe{Backend: fake.New(fake.NewWorld()), onSubmit: func(n int32) error {
		if n == 1 {
			close(entered)
			<-hold
		}
		return nil
	}}
	b := fast(be)
	stop := a.serve(b, Where{Host: "laptop"})
	failed := make(chan error, 1)
	go func() {
		_, err := a.r.Submit(bounded(t), pool(nil), request("t1", 1))
		failed <- err
	}()
	<-entered
	close(hold)
	stop()
	a.moved(false)
	if err := <-failed; err != nil && !errs.Is(err, errs.Unavailable) {
		t.Errorf("a call that was cut: %v", err)
	}
	a.serve(b, Where{Host: "laptop"})
	if allocs, err := a.r.Submit(bounded(t), pool(nil), request("t1", 1)); err != nil || len(allocs) == 0 {
		t.Error(allocs, err)
	}
}

// TestRemoteNewest: a laptop that was cut off is back before its old session has ended;
// the end of that one must not count.
func TestRemoteNewest(t *testing.T) {
	a := newAway(t)
	b := fast(&probe{Backend: fake.New(fake.NewWorld())})
	old := a.serve(b, Where{Host: "laptop"})
	a.serve(b, Where{Host: "laptop"})
	old()
	if _, err := a.r.Find(bounded(t), pool(nil), "lab", []string{"x"}); err != nil {
		t.Error(err)
	}
	select {
	case here := <-a.moves:
		t.Errorf("told that the broker is here: %v", here)
	default:
	}
}
