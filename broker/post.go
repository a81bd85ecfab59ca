package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// HeadAtFile says, in a cluster's state directory, on which machine its head was started.
// It stays there, whatever the spec says, until the cluster is down or the machine is lost.
const HeadAtFile = "head.at"

// HeadLeftFile names machines on which something of a head may be that could not be told
// that its cluster is down; the next up tells them.
const HeadLeftFile = "head.left"

// post is where the head is.
type post struct {
	Pool  wire.Pool // with the one place, or with none before it is known
	Term  uint64    // how often it was moved
	Left  []wire.Pool
	Begun bool   // it has run there
	Why   string // why it is there and not on the first machine of its pool
}

func (s post) place() string {
	if len(s.Pool.Places) == 0 {
		return ""
	}
	return s.Pool.Places[0]
}

const (
	// headLost is after how long without a connection the head's machine may be given up. One
	// that ended by silence had been silent for six seconds before.
	headLost = 7 * time.Second
	// seenBound is how long the other machines may take to say what they know.
	seenBound = 10 * time.Second
	lookEvery = time.Second
	// aloneBound is how long the first machine of the head's pool has for itself, until the
	// others are tried, too.
	aloneBound = 5 * time.Second
	// ghostEvery is between two tries to reach machines that the head was moved from.
	ghostEvery = 5 * time.Second
	ghostBound = 20 * time.Second
)

func readPost(path string, s *post) (ok bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = wire.Unmarshal(b, s)
	}
	if err != nil {
		return false, errs.Wrap(errs.Corrupt, err, "%s", path)
	}
	return true, nil
}

// sit finds the head's machine, if it was started on one.
func (f *front) sit() error {
	var left post
	if _, err := readPost(filepath.Join(f.dir, HeadLeftFile), &left); err != nil {
		return err
	}
	ok, err := readPost(filepath.Join(f.dir, HeadAtFile), &f.post)
	if err != nil {
		return err
	}
	c := f.o.Config
	if !ok {
		k := slices.IndexFunc(c.Pools, func(p wire.Pool) bool { return p.Name == c.At })
		if k < 0 {
			return errs.New(errs.Invalid, "the head is to be in pool %s, and there is none", c.At)
		}
		f.post.Pool = c.Pools[k]
		f.post.Pool.Places = nil
		if len(left.Left) > 0 { // what is there is of an earlier life, and not to be gone on with
			f.post.Term = left.Term + 1
		}
	}
	for _, p := range left.Left {
		f.post.leave(p)
	}
	be, err := f.o.Broker.backend(f.post.Pool)
	if err != nil {
		return err
	}
	if f.hosts, ok = backends.As[backends.HeadHost](be); !ok {
		return errs.New(errs.Invalid, "no machine of pool %s can have the head", f.post.Pool.Name)
	}
	return nil
}

// places are the machines that can have the head, those of pool first: pools with one place.
func (f *front) places(first string) (out []wire.Pool) {
	f.mu.Lock()
	pools := slices.Clone(f.o.Config.Pools)
	f.mu.Unlock()
	slices.SortStableFunc(pools, func(a, b wire.Pool) int {
		here := map[bool]int{true: -1}
		return here[a.Name == first] - here[b.Name == first]
	})
	for _, p := range pools {
		if be, err := f.o.Broker.backend(p); err != nil || !hasHeads(be) {
			continue
		}
		for _, place := range p.Places {
			if place != "" {
				q := p
				q.Places = []string{place}
				out = append(out, q)
			}
		}
	}
	return out
}

func hasHeads(be backends.Backend) bool {
	_, ok := backends.As[backends.HeadHost](be)
	return ok
}

// place gives the machine that has the head, or is to have it: the first of the pool, unless
// it cannot be reached, or not in aloneBound, and another one can.
func (f *front) place(ctx context.Context) (wire.Pool, error) {
	s := f.now()
	if len(s.Pool.Places) > 0 {
		return s.Pool, nil
	}
	all := slices.DeleteFunc(f.places(s.Pool.Name), func(p wire.Pool) bool { return p.Name != s.Pool.Name })
	if len(all) == 0 {
		return s.Pool, errs.New(errs.Invalid, "no machine of pool %s can have the head", s.Pool.Name)
	}
	f.mu.Lock()
	fresh := slices.DeleteFunc(slices.Clone(all), func(p wire.Pool) bool { return f.refused[p.Places[0]] != nil })
	if len(fresh) == 0 { // then all of them once more
		clear(f.refused)
		fresh = all
	}
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	type answer struct {
		i   int
		err error
	}
	answers := make(chan answer, len(fresh))
	asked := 0
	ask := func(n int) {
		for ; asked < n; asked++ {
			i := asked
			wg.Go(func() {
				at, err := f.headAt(fresh[i])
				if err == nil {
					_, err = f.hosts.SeenHead(ctx, at)
				}
				answers <- answer{i, err}
			})
		}
	}
	ask(1)
	bound := time.NewTimer(aloneBound)
	defer bound.Stop()
	bad := map[string]error{}
	var first error
	for got := 0; got < len(fresh); {
		select {
		case <-bound.C:
			ask(len(fresh))
		case <-ctx.Done():
			return s.Pool, context.Cause(ctx)
		case a := <-answers:
			got++
			if a.err != nil {
				bad[fresh[a.i].Places[0]] = a.err
				if first == nil || a.i == 0 {
					first = a.err
				}
				ask(len(fresh))
				continue
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.ending {
				return s.Pool, errs.New(errs.Cancelled, "the cluster is going down")
			}
			f.post.Pool, f.post.Why = fresh[a.i], ""
			if one := all[0].Places[0]; one != f.post.place() {
				err := cmp.Or[error](f.refused[one], bad[one], errs.New(errs.Timeout, "%s does not answer yet", one))
				f.post.Why = errs.Line(err)
				f.log.Warn("the head is not started on the first machine of its pool", "place", f.post.place(), "err", err)
			}
			return f.post.Pool, nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad = bad
	return s.Pool, first
}

// refuse notes that the head could not be started where that was tried first. Another
// machine is tried next, if there is one; whatever did begin to run counts for nothing.
func (f *front) refuse(p wire.Pool, err error) error {
	if len(f.places(p.Name)) < 2 {
		return nil
	}
	f.mu.Lock()
	f.refused[p.Places[0]] = err
	f.post.Pool.Places = nil
	f.post.leave(p)
	f.post.Term++
	f.mu.Unlock()
	return f.keepPost()
}

// leave notes a machine that the head is not on any more, but may not know of it.
func (s *post) leave(p wire.Pool) {
	same := func(q wire.Pool) bool { return slices.Equal(q.Places, p.Places) }
	if !same(s.Pool) && !slices.ContainsFunc(s.Left, same) {
		s.Left = append(slices.Clone(s.Left), p)
	}
}

// headAt says what the backend needs to know of the head on a machine of a pool.
func (f *front) headAt(p wire.Pool) (backends.HeadAt, error) {
	f.mu.Lock()
	c, s, silent := f.o.Config, f.post, f.silent
	f.mu.Unlock()
	opts, err := options(p)
	if err != nil {
		return backends.HeadAt{}, err
	}
	c.Term, c.Seat, c.Silent = s.Term, nodeAt(c.Pools, p), silent
	return backends.HeadAt{Dir: f.dir, Config: c, Copy: s.Begun, Request: backends.Request{Cluster: c.Name, Pool: p.Name, Options: opts, Places: p.Places,
		Nodes: []wire.NodeID{}, Join: backends.Join{CA: f.ca}, Home: c.Home, Binary: c.Binary}}, nil
}

// nodeAt is the node of a pool's machine.
func nodeAt(pools []wire.Pool, p wire.Pool) wire.NodeID {
	for _, q := range pools {
		if q.Name == p.Name && len(p.Places) == 1 {
			if i := slices.Index(q.Places, p.Places[0]); i >= 0 {
				return wire.PlaceNode(q.Name, i)
			}
		}
	}
	return ""
}

// now gives where the head is.
func (f *front) now() post {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.post
}

// keepPost writes down where the head is.
func (f *front) keepPost() error {
	return writeWhole(filepath.Join(f.dir, HeadAtFile), wire.Marshal(f.now()))
}

// every does something again and again until ctx ends.
func every(ctx context.Context, pause time.Duration, do func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			do()
		case <-ctx.Done():
			return
		}
	}
}

// watch has the head started elsewhere when its machine is lost.
func (f *front) watch(ctx context.Context) {
	f.mu.Lock()
	away := f.post.Begun && (f.cur == nil || f.cur.Err() != nil) && !f.ending && time.Since(f.heard) >= headLost
	f.mu.Unlock()
	if !away {
		return
	}
	err := f.move(ctx)
	f.mu.Lock()
	f.heard = time.Now().Add(lookEvery*5 - headLost) // the next look
	if err == nil {
		f.heard = time.Now()
	}
	f.stuck = err
	f.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		f.log.Warn("the head is not started elsewhere", "err", err)
	}
}

// move has the head started on the machine with the best copy of its journal, if nobody
// knows of it any more. The old one may be alive for all that: it is told when it is heard
// of again, and what it does until then counts for nothing.
func (f *front) move(ctx context.Context) error {
	was := f.now()
	ctx, cancel := context.WithTimeout(ctx, seenBound)
	defer cancel()
	type answer struct {
		pool wire.Pool
		seen backends.HeadSeen
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var answers []answer
	for _, p := range f.places(was.Pool.Name) {
		if p.Places[0] == was.place() {
			continue
		}
		wg.Go(func() {
			at, err := f.headAt(p)
			var seen backends.HeadSeen
			if err == nil {
				seen, err = f.hosts.SeenHead(ctx, at)
			}
			if err != nil {
				f.log.Info("a machine does not say what it knows of the head", "place", p.Places[0], "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer{p, seen})
		})
	}
	wg.Wait()
	var best *answer
	for i, a := range answers {
		if uint64(a.seen.Epoch)>>wire.TermShift >= was.Term && a.seen.Epoch > 0 {
			return errs.New(errs.Unavailable, "the head runs on %s, where %s reaches it and we do not", was.place(), a.pool.Places[0])
		}
		if a.seen.Copy && (best == nil || a.seen.Of > best.seen.Of || a.seen.Of == best.seen.Of && a.seen.Last > best.seen.Last) {
			best = &answers[i]
		}
	}
	if best == nil {
		return errs.New(errs.Unavailable, "%s is lost, and no machine that can be reached has a copy of the head's journal", was.place())
	}
	next := post{Pool: best.pool, Term: was.Term + 1, Begun: true, Why: was.place() + " was lost"}
	for _, p := range append(slices.Clone(was.Left), was.Pool) {
		next.leave(p)
	}
	if err := writeWhole(filepath.Join(f.dir, HeadAtFile), wire.Marshal(next)); err != nil {
		return err
	}
	f.log.Warn("the head's machine is lost; it is started elsewhere", "was", was.place(), "place", next.place(), "term", next.Term, "epoch", best.seen.Of, "record", best.seen.Last)
	f.mu.Lock()
	f.post, f.silent, f.err = next, []wire.NodeID{nodeAt(f.o.Config.Pools, was.Pool)}, nil
	giveUp := f.giveUp
	f.mu.Unlock()
	giveUp()
	nudge(f.poke)
	return nil
}

// ghosts ends what is left of the head where it is not any more.
func (f *front) ghosts(ctx context.Context) {
	f.mu.Lock()
	here := f.cur != nil && len(f.post.Left) > 0
	f.mu.Unlock()
	if here && f.endGhosts(ctx) {
		if err := f.keepPost(); err != nil {
			f.log.Warn("cannot write down where the head was", "err", err)
		}
	}
}

// endGhosts tries all of them and says whether any is done with.
func (f *front) endGhosts(ctx context.Context) (some bool) {
	ctx, cancel := context.WithTimeout(ctx, ghostBound)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range f.now().Left {
		wg.Go(func() {
			at, err := f.headAt(p)
			if err == nil {
				err = f.hosts.EndGhost(ctx, at)
			}
			if err != nil {
				f.log.Debug("cannot reach where the head was", "place", p.Places[0], "err", err)
				return
			}
			f.log.Info("nothing of the head is left where it was", "place", p.Places[0])
			f.mu.Lock()
			defer f.mu.Unlock()
			f.post.Left = slices.DeleteFunc(slices.Clone(f.post.Left), func(q wire.Pool) bool { return slices.Equal(q.Places, p.Places) })
			some = true
		})
	}
	wg.Wait()
	return some
}

// rise ends the front's part when the cluster is down: machines that could not be told are
// written down.
func (f *front) rise(ctx context.Context) error {
	f.mu.Lock()
	f.ending = true
	f.mu.Unlock()
	if len(f.now().Left) > 0 {
		f.endGhosts(ctx)
	}
	path := filepath.Join(f.dir, HeadLeftFile)
	if s := f.now(); len(s.Left) > 0 {
		if err := writeWhole(path, wire.Marshal(s)); err != nil {
			return err
		}
	} else {
		_ = os.Remove(path)
	}
	_ = os.Remove(filepath.Join(f.dir, HeadAtFile))
	return nil
}

// HeadWhy says where a head is that is not on the first machine of its pool, and why.
func HeadWhy(dir string) string {
	var s post
	if ok, err := readPost(filepath.Join(dir, HeadAtFile), &s); !ok || err != nil || s.Why == "" {
		return ""
	}
	return fmt.Sprintf("the head is on %s: %s", s.place(), s.Why)
}

// HeadPlace names the machine that has the head of a cluster that is not known to be down;
// "" when that is none but this one.
func HeadPlace(dir string) string {
	var s post
	_, _ = readPost(filepath.Join(dir, HeadAtFile), &s)
	if seat, ok := ReadSeat(dir); ok {
		return "node " + string(seat.Node)
	}
	return s.place()
}

// LeftBehind names the machines that could not be told that a cluster is down.
func LeftBehind(dir string) (places []string) {
	var s post
	if ok, err := readPost(filepath.Join(dir, HeadLeftFile), &s); ok && err == nil {
		for _, p := range s.Left {
			places = append(places, p.Places...)
		}
	}
	return places
}
