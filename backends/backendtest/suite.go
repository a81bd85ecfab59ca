// Package backendtest checks the laws of package backends. A backend's own test file
// calls Run with a Harness that says how to make requests and how to look behind its back.
package backendtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Harness is what the suite needs to know of an implementation.
type Harness struct {
	// Open gives a backend as another process would see it: same world, own connection.
	Open func(t *testing.T) backends.Backend
	// Request asks for n nodes (never more than MaxPerCall) with a token; the suite sets nothing else. Successive
	// requests must not compete for anything.
	Request func(t *testing.T, token string, n int) backends.Request
	// Nodes is how many nodes really run now, by other means than the backend's.
	Nodes func(t *testing.T) int
	// Kill ends a node without telling the backend; nil = cannot.
	Kill func(t *testing.T, a backends.Alloc)
	// Good and Bad are options that Check must take and refuse; the keys of each Bad must
	// all be named by its faults.
	Good, Bad []backends.Options
	// BadSubmit is a request that must fail for ever; nil = there is none.
	BadSubmit func(t *testing.T, token string) backends.Request
	// Bound is how long a start, an end or a cancellation may take.
	Bound time.Duration
}

// secret is the join key of every request of the suite.
var secret = []byte("SECRET-JOIN-KEY-0123456789")

type suite struct {
	*testing.T
	h   Harness
	ctx context.Context
	b   backends.Backend
}

// Run checks every law.
func Run(t *testing.T, h Harness) {
	for _, law := range []struct {
		name string
		f    func(s *suite)
	}{
		{"Capabilities", (*suite).capabilities},
		{"Check", (*suite).check},
		{"Lifecycle", (*suite).lifecycle},
		{"Tokens", (*suite).tokens},
		{"ConcurrentTokens", (*suite).concurrentTokens},
		{"OtherProcess", (*suite).otherProcess},
		{"Unknown", (*suite).unknown},
		{"CancelTwice", (*suite).cancelTwice},
		{"Cancelled", (*suite).cancelledContext},
		{"BadSubmit", (*suite).badSubmit},
		{"Killed", (*suite).killed},
		{"DryRun", (*suite).dryRun},
		{"Together", (*suite).together},
	} {
		t.Run(law.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 6*h.Bound)
			t.Cleanup(cancel)
			s := &suite{T: t, h: h, ctx: ctx, b: h.Open(t)}
			t.Cleanup(func() {
				if err := s.b.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			law.f(s)
		})
	}
}

// request asks for n nodes, or as many as the backend takes in one request.
func (s *suite) request(token string, n int) backends.Request {
	if most := s.b.Capabilities().MaxPerCall; most > 0 {
		n = min(n, most)
	}
	r := s.h.Request(s.T, token, n)
	r.Token, r.Join.Key = token, secret
	if len(r.Nodes) != n || len(r.Epochs) != n {
		s.Fatalf("the harness made a request for %d nodes, wanted %d", len(r.Nodes), n)
	}
	return r
}

func (s *suite) token() string { return Token(strings.ReplaceAll(s.Name(), "/", "-")) }

var run = "-" + rand.Text()[:8]

// Token is a token of this run of the tests alone: processes are found by tokens, those of
// a run beside this one too.
func Token(name string) string { return name + run }

// submit submits and sees to the end of what it made.
func (s *suite) submit(r backends.Request) []backends.Alloc {
	s.Helper()
	allocs, err := s.b.Submit(s.ctx, r)
	if err != nil {
		s.Fatalf("submit: %v", err)
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.h.Bound)
		defer cancel()
		if err := s.b.Cancel(ctx, handles(allocs)); err != nil {
			s.Errorf("cancel at the end: %v", err)
		}
	})
	var covered []wire.NodeID
	for _, a := range allocs {
		if a.Token != r.Token || len(a.Handle) == 0 {
			s.Errorf("allocation without token or handle: %+v", a)
		}
		covered = append(covered, a.Nodes...)
	}
	slices.Sort(covered)
	want := slices.Sorted(slices.Values(r.Nodes))
	if !slices.Equal(covered, want) {
		s.Fatalf("allocations cover %v, wanted %v", covered, want)
	}
	return allocs
}

func handles(allocs []backends.Alloc) [][]byte {
	var out [][]byte
	for _, a := range allocs {
		out = append(out, a.Handle)
	}
	return out
}

func (s *suite) status(b backends.Backend, allocs []backends.Alloc) []backends.Status {
	s.Helper()
	st, err := b.Status(s.ctx, handles(allocs))
	if err != nil || len(st) != len(allocs) {
		s.Fatalf("status: %d answers to %d questions, %v", len(st), len(allocs), err)
	}
	return st
}

// await waits until every allocation is in a state that ok takes, and checks on the way
// that states only go forward.
func (s *suite) await(b backends.Backend, allocs []backends.Alloc, what string, ok func(backends.Status) bool) {
	s.Helper()
	last := make([]backends.AllocState, len(allocs))
	deadline := time.Now().Add(s.h.Bound)
	for {
		st := s.status(b, allocs)
		all := true
		for i := range st {
			if st[i].State < last[i] {
				s.Fatalf("state went back from %d to %d (%s)", last[i], st[i].State, st[i].Why)
			}
			last[i] = st[i].State
			all = all && ok(st[i])
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("not %s within %s: %+v", what, s.h.Bound, st)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func running(st backends.Status) bool { return st.State == backends.Running }
func ended(st backends.Status) bool   { return st.State.Ended() }

// nodes waits until exactly n nodes run, by the harness's own eyes.
func (s *suite) nodes(n int) {
	s.Helper()
	deadline := time.Now().Add(s.h.Bound)
	for {
		got := s.h.Nodes(s.T)
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%d nodes run, wanted %d", got, n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *suite) capabilities() {
	c := s.b.Capabilities()
	if c.Name == "" || c.DefaultMin == nil || c.Limit == nil {
		s.Errorf("incomplete capabilities: %+v", c)
	}
	for _, o := range s.h.Good {
		if n := c.DefaultMin(o); n < 0 {
			s.Errorf("default min %d for %v", n, o)
		}
		if n, why := c.Limit(o); n < 0 || n > 0 && why == "" {
			s.Errorf("limit %d, %q for %v", n, why, o)
		}
	}
}

func (s *suite) check() {
	for _, o := range s.h.Good {
		if f := s.b.Check(o); len(f) > 0 {
			s.Errorf("%v refused: %+v", o, f)
		}
	}
	for _, o := range s.h.Bad {
		faults := s.b.Check(o)
		for k := range o {
			if !slices.ContainsFunc(faults, func(f backends.Fault) bool { return f.Key == k && f.Msg != "" }) {
				s.Errorf("%v: no fault names %q: %+v", o, k, faults)
			}
		}
	}
}

func (s *suite) lifecycle() {
	r := s.request(s.token(), 2)
	allocs := s.submit(r)
	s.await(s.b, allocs, "running", running)
	s.nodes(len(r.Nodes))
	if err := s.b.Cancel(s.ctx, handles(allocs)); err != nil {
		s.Fatalf("cancel: %v", err)
	}
	s.await(s.b, allocs, "ended", ended)
	s.nodes(0)
	for _, st := range s.status(s.b, allocs) {
		if st.State != backends.Done {
			s.Errorf("cancelled and running, ended as %d (%s), wanted done", st.State, st.Why)
		}
	}
}

func (s *suite) tokens() {
	r := s.request(s.token(), 2)
	first := s.submit(r)
	second, err := s.b.Submit(s.ctx, r)
	if err != nil {
		s.Fatalf("the second submission: %v", err)
	}
	s.same(first, second)
	s.await(s.b, first, "running", running)
	s.nodes(len(r.Nodes))
}

func (s *suite) same(a, b []backends.Alloc) {
	s.Helper()
	key := func(x []backends.Alloc) []string {
		var out []string
		for _, v := range x {
			out = append(out, fmt.Sprint(v.Token, v.Nodes, string(v.Handle)))
		}
		slices.Sort(out)
		return out
	}
	if !slices.Equal(key(a), key(b)) {
		s.Errorf("different allocations for one token:\n%q\n%q", key(a), key(b))
	}
}

func (s *suite) concurrentTokens() {
	r := s.request(s.token(), 2)
	const n = 4
	var got [n][]backends.Alloc
	var fail [n]error
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { got[i], fail[i] = s.b.Submit(s.ctx, r) })
	}
	wg.Wait()
	made := s.submit(r) // for its cleanup
	for i := range n {
		if fail[i] != nil {
			s.Fatalf("one of several at once: %v", fail[i])
		}
		s.same(made, got[i])
	}
	s.nodes(len(r.Nodes))
}

func (s *suite) otherProcess() {
	r := s.request(s.token(), 2)
	made := s.submit(r)
	other := s.h.Open(s.T)
	defer other.Close()
	found, err := other.Find(s.ctx, r.Cluster, []string{r.Token, "a token that nobody used"})
	if err != nil {
		s.Fatalf("find: %v", err)
	}
	if len(found) != 1 {
		s.Fatalf("found %d tokens, wanted one: %v", len(found), found)
	}
	s.same(made, found[r.Token])
	again, err := other.Submit(s.ctx, r)
	if err != nil {
		s.Fatalf("submit from another process: %v", err)
	}
	s.same(made, again)
	s.await(other, made, "running", running)
	s.nodes(len(r.Nodes))
	if err := other.Cancel(s.ctx, handles(made)); err != nil {
		s.Fatalf("cancel from another process: %v", err)
	}
	s.await(s.b, made, "ended", ended)
	s.await(other, made, "ended", ended)
	s.nodes(0)
	// What has ended is still found, and does not run again.
	again, err = other.Submit(s.ctx, r)
	if err != nil {
		s.Fatalf("submit after the end: %v", err)
	}
	s.same(made, again)
	s.nodes(0)
}

func (s *suite) unknown() {
	strange := [][]byte{nil, {}, []byte("garbage"), []byte("{}"), []byte(`{"v":1,"pid":1}`), {0xff, 0, 1}}
	st, err := s.b.Status(s.ctx, strange)
	if err != nil || len(st) != len(strange) {
		s.Fatalf("status of unknown handles: %v, %v", st, err)
	}
	for i := range st {
		if st[i].State != backends.Lost {
			s.Errorf("handle %q is in state %d, wanted lost", strange[i], st[i].State)
		}
	}
	if err := s.b.Cancel(s.ctx, strange); err != nil {
		s.Errorf("cancel of unknown handles: %v", err)
	}
	if found, err := s.b.Find(s.ctx, "no such cluster", []string{"x"}); err != nil || len(found) > 0 {
		s.Errorf("find in an unknown cluster: %v, %v", found, err)
	}
	if st, err := s.b.Status(s.ctx, nil); err != nil || len(st) != 0 {
		s.Errorf("status of nothing: %v, %v", st, err)
	}
}

func (s *suite) cancelTwice() {
	allocs := s.submit(s.request(s.token(), 1))
	for range 2 {
		if err := s.b.Cancel(s.ctx, handles(allocs)); err != nil {
			s.Fatalf("cancel: %v", err)
		}
	}
	s.await(s.b, allocs, "ended", ended)
	before := s.status(s.b, allocs)
	if err := s.b.Cancel(s.ctx, handles(allocs)); err != nil {
		s.Fatalf("cancel after the end: %v", err)
	}
	if after := s.status(s.b, allocs); after[0].State != before[0].State {
		s.Errorf("cancelling what has ended changed %+v to %+v", before[0], after[0])
	}
	s.nodes(0)
}

func (s *suite) cancelledContext() {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	r := s.request(s.token(), 1)
	if allocs, err := s.b.Submit(ctx, r); err == nil {
		s.Errorf("submit with a context that has ended: %v", allocs)
	}
	found, err := s.b.Find(s.ctx, r.Cluster, []string{r.Token})
	if err != nil {
		s.Fatal(err)
	}
	if len(found) == 0 {
		s.nodes(0)
	}
	s.submit(r) // and it can be tried again
	s.nodes(1)
}

func (s *suite) badSubmit() {
	if s.h.BadSubmit == nil {
		s.Skip("this backend has no submission that must fail")
	}
	r := s.h.BadSubmit(s.T, s.token())
	r.Token = s.token()
	allocs, err := s.b.Submit(s.ctx, r)
	if err == nil || errs.KindOf(err) == errs.Unknown || errs.Retryable(err) {
		s.Errorf("a bad request gave %v, %v (%s), wanted an error that says not to try again", allocs, err, errs.KindOf(err))
	}
	found, err := s.b.Find(s.ctx, r.Cluster, []string{r.Token})
	if err != nil || len(found) > 0 {
		s.Errorf("a bad request left %v, %v", found, err)
	}
	s.nodes(0)
}

func (s *suite) killed() {
	if s.h.Kill == nil {
		s.Skip("nodes of this backend cannot be killed from here")
	}
	allocs := s.submit(s.request(s.token(), 1))
	s.await(s.b, allocs, "running", running)
	s.nodes(1)
	ctx, cancel := context.WithCancel(s.ctx)
	changed := make(chan int, 16)
	watched := make(chan error, 1)
	w, watches := backends.As[backends.Watcher](s.b)
	if watches {
		go func() { watched <- w.Watch(ctx, handles(allocs), changed) }()
	}
	s.h.Kill(s.T, allocs[0])
	if watches {
		for told := false; !told; {
			select {
			case i := <-changed:
				told = i == 0 && ended(s.status(s.b, allocs)[0])
			case <-time.After(s.h.Bound):
				s.Fatal("the watcher did not tell of a death")
			}
		}
	}
	s.await(s.b, allocs, "ended", ended)
	if st := s.status(s.b, allocs)[0]; st.State == backends.Done || st.Why == "" {
		s.Errorf("a killed node ended as %d (%q)", st.State, st.Why)
	}
	s.nodes(0)
	cancel()
	if watches {
		select {
		case err := <-watched:
			if err != nil {
				s.Errorf("watch: %v", err)
			}
		case <-time.After(s.h.Bound):
			s.Error("the watcher does not end with its context")
		}
	}
}

func (s *suite) dryRun() {
	r := s.request(s.token(), 2)
	var out bytes.Buffer
	if err := s.b.DryRun(r, &out); err != nil {
		s.Fatalf("dry run: %v", err)
	}
	if bytes.Contains(out.Bytes(), secret) {
		s.Errorf("the join key is in the dry run:\n%s", &out)
	}
	for _, n := range r.Nodes {
		if !strings.Contains(out.String(), string(n)) {
			s.Errorf("node %s is not in the dry run:\n%s", n, &out)
		}
	}
	found, err := s.b.Find(s.ctx, r.Cluster, []string{r.Token})
	if err != nil || len(found) > 0 {
		s.Errorf("a dry run submitted: %v, %v", found, err)
	}
	s.nodes(0)
}

// together: what several callers do at once does not mix.
func (s *suite) together() {
	var wg sync.WaitGroup
	for i := range 3 {
		r := s.request(fmt.Sprintf("%s-%d", s.token(), i), 1)
		wg.Go(func() {
			allocs, err := s.b.Submit(s.ctx, r)
			if err != nil {
				s.Errorf("submit: %v", err)
				return
			}
			s.b.Status(s.ctx, handles(allocs))
			if err := s.b.Cancel(s.ctx, handles(allocs)); err != nil {
				s.Errorf("cancel: %v", err)
			}
			if st, err := s.b.Status(s.ctx, handles(allocs)); err != nil || !ended(st[0]) {
				s.Errorf("after cancel: %v, %v", st, err)
			}
		})
	}
	wg.Wait()
	s.nodes(0)
}
