package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"launcher"
)

// The actors of the tests.

var (
	Counters = launcher.Actor(newCounter)
	Add      = launcher.Method((*counter).Add)
	Value    = launcher.Method0((*counter).Value)
	Die      = launcher.Method0((*counter).Die)
	Leave    = launcher.Method0((*counter).Leave)
	UpTo     = launcher.StreamMethod((*counter).UpTo, launcher.Backpressure(4))
	Sleep    = launcher.Method((*counter).Sleep)
	Mean     = launcher.Method((*counter).Mean)
	Where    = launcher.Method0((*counter).Where)
	Me       = launcher.Method0((*counter).Me)
	Relay    = launcher.Method2((*counter).Relay)

	Rooms = launcher.Actor0(newRoom, launcher.MaxConcurrency(8), launcher.ConcurrencyGroup("io", 1))
	Meet  = launcher.Method((*room).Meet)
	Most  = launcher.Method0((*room).Most)
	IO    = launcher.Method0((*room).IO, launcher.InGroup("io"))

	// Poke adds to a counter from a task.
	Poke = launcher.Func2(poke)
)

type counter struct{ n int }

func newCounter(_ context.Context, start int) (*counter, error) {
	if start < 0 {
		return nil, fmt.Errorf("counting from %d: %w", start, ErrEmpty)
	}
	return &counter{start}, nil
}

func (c *counter) Add(_ context.Context, n int) (int, error) {
	if n == 0 {
		return 0, fmt.Errorf("adding %d: %w", n, ErrEmpty)
	}
	c.n += n
	return c.n, nil
}

func (c *counter) Value(context.Context) (int, error) { return c.n, nil }

// Die kills the actor's process.
func (c *counter) Die(context.Context) (int, error) {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (c *counter) Leave(ctx context.Context) (int, error) {
	launcher.ExitActor(ctx)
	return 0, nil
}

func (c *counter) UpTo(_ context.Context, n int) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for range n {
			if c.n++; !yield(c.n, nil) {
				return
			}
		}
	}
}

// Sleep says why it was ended.
func (c *counter) Sleep(ctx context.Context, d time.Duration) (string, error) {
	return sleepFor(ctx, d)
}

func (c *counter) Mean(ctx context.Context, v []float64) (float64, error) { return meanOf(ctx, v) }

func (c *counter) Where(ctx context.Context) (launcher.TaskInfo, error) {
	info, _ := launcher.Task(ctx)
	return info, nil
}

func (c *counter) Me(ctx context.Context) (launcher.Handle[*counter], error) {
	return launcher.Self[*counter](ctx)
}

// Relay has another counter add, and waits for it.
func (c *counter) Relay(ctx context.Context, to launcher.Handle[*counter], n int) (int, error) {
	return Add.Submit(ctx, to, n).Get(ctx)
}

func poke(ctx context.Context, h launcher.Handle[*counter], n int) (int, error) {
	return Add.Submit(ctx, h, n).Get(ctx)
}

// notes writes down at its end that it has ended.
type notes struct {
	path string
	over context.Context
}

var (
	Notes = launcher.Actor(func(ctx context.Context, path string) (*notes, error) { return &notes{path, ctx}, nil })
	Quit  = launcher.Method((*notes).Quit, launcher.Name("Quit"))
)

// Quit ends the actor if it is to.
func (n *notes) Quit(ctx context.Context, now bool) (bool, error) {
	if now {
		launcher.ExitActor(ctx)
	}
	return n.over.Err() == nil, nil
}

func (n *notes) Close() error { return os.WriteFile(n.path, []byte(n.over.Err().Error()), 0o600) }

// room counts who is in it.
type room struct {
	mu        sync.Mutex
	in, most  int
	full      chan struct{}
	inIO, bad atomic.Int32
}

func newRoom(context.Context) (*room, error) { return &room{full: make(chan struct{})}, nil }

// Meet waits until n are there.
func (r *room) Meet(ctx context.Context, n int) (int, error) {
	r.mu.Lock()
	r.in++
	if r.most = max(r.most, r.in); r.in == n {
		close(r.full)
	}
	r.mu.Unlock()
	select {
	case <-r.full:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in--
	return n, nil
}

func (r *room) Most(context.Context) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most, nil
}

func (r *room) IO(context.Context) (int, error) {
	if r.inIO.Add(1) != 1 {
		r.bad.Add(1)
	}
	time.Sleep(time.Millisecond) // sleep: others are to have time to come in
	r.inIO.Add(-1)
	return int(r.bad.Load()), nil
}

// expect fails with what is not as it should be.
func expect(so bool, format string, args ...any) {
	if !so {
		panic(fmt.Errorf(format, args...))
	}
}

// count10 is a counter that begins at 10.
func count10(ctx context.Context, opts ...launcher.Option) launcher.Handle[*counter] {
	h, err := Counters.New(ctx, 10, opts...)
	expect(err == nil, "%v", err)
	return h
}

// actorPrograms are drivers that say "all right" or fail.
var actorPrograms = map[string]func(ctx context.Context){
	"order": func(ctx context.Context) {
		h := count10(ctx)
		var refs []launcher.Ref[int]
		for range 2000 {
			refs = append(refs, Add.Submit(ctx, h, 1))
		}
		for i, r := range refs {
			v, err := r.Get(ctx)
			expect(err == nil && v == 11+i, "call %d gave %d, %v", i, v, err)
		}
		// A later call waits for an earlier one, whatever that waits for.
		late := sleep.Submit(ctx, 100*time.Millisecond)
		one := Sleep.SubmitArg(ctx, h, launcher.V(time.Duration(0)))
		first := Mean.SubmitArg(ctx, h, filledAfter(ctx, late))
		second := Value.Submit(ctx, h)
		_, err := launcher.Get(ctx, one)
		expect(err == nil, "%v", err)
		ready, _ := launcher.Wait(ctx, []launcher.AnyRef{first, second}, 1)
		expect(ready[0] == launcher.AnyRef(first), "a later call was earlier")
	},
	"errors": func(ctx context.Context) {
		h := count10(ctx)
		_, err := Add.Submit(ctx, h, 0).Get(ctx)
		expect(errors.Is(err, ErrEmpty), "%v", err)
		bad, err := Counters.New(ctx, -1)
		expect(err == nil, "%v", err)
		err = bad.Ready(ctx)
		expect(errors.Is(err, launcher.ErrActorDied) && errors.Is(err, ErrEmpty), "%v", err)
		_, err = Add.Submit(ctx, bad, 1).Get(ctx)
		expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
		_, err = Add.Submit(ctx, launcher.Handle[*counter]{}, 1).Get(ctx)
		expect(err != nil, "a call of nothing")
		_, err = Counters.New(ctx, 1, launcher.Retries(1))
		expect(err != nil, "an actor with retries")
		_, err = Square.Submit(ctx, 1, launcher.MaxConcurrency(2)).Get(ctx)
		expect(err != nil, "a task with concurrency")
		v, err := Value.Submit(ctx, h).Get(ctx)
		expect(v == 10 && err == nil, "%d, %v", v, err)
	},
	"restart": func(ctx context.Context) {
		h := count10(ctx, launcher.MaxRestarts(2))
		v, err := Add.Submit(ctx, h, 1).Get(ctx)
		expect(v == 11 && err == nil, "%d, %v", v, err)
		_, err = Die.Submit(ctx, h).Get(ctx)
		expect(errors.Is(err, launcher.ErrActorUnavailable), "%v", err)
		v, err = Value.Submit(ctx, h).Get(ctx)
		expect(v == 10 && err == nil, "in its second life %d, %v", v, err)
		expect(h.Restart() == nil, "no restart")
		v, err = Add.Submit(ctx, h, 1, launcher.Retries(-1)).Get(ctx)
		expect((v == 11 || v == 12) && err == nil, "in its third life %d, %v", v, err)
		_, err = Die.Submit(ctx, h).Get(ctx)
		expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
		_, err = Value.Submit(ctx, h).Get(ctx)
		expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
	},
	"kill": func(ctx context.Context) {
		h := count10(ctx, launcher.MaxRestarts(-1))
		expect(h.Ready(ctx) == nil, "not ready")
		r := Sleep.Submit(ctx, h, time.Hour)
		expect(h.Kill() == nil, "no kill")
		_, err := r.Get(ctx)
		expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
		h = count10(ctx, launcher.MaxRestarts(-1))
		_, err = Leave.Submit(ctx, h).Get(ctx)
		expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
	},
	"close": func(ctx context.Context) {
		dir, err := os.MkdirTemp("", "close")
		expect(err == nil, "%v", err)
		defer os.RemoveAll(dir)
		for i, quits := range []bool{true, false} {
			path := filepath.Join(dir, fmt.Sprint(i))
			h, err := Notes.New(ctx, path)
			expect(err == nil, "%v", err)
			before := Quit.Submit(ctx, h, false)
			if quits {
				_, err = Quit.Submit(ctx, h, true).Get(ctx)
				expect(errors.Is(err, launcher.ErrActorDied), "%v", err)
			}
			lives, err := before.Get(ctx) // its result is not lost with the actor
			expect(lives && err == nil, "the constructor's context ended before the actor: %v", err)
			h.Release()
			for left := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // sleep: it asks again
				if b, _ := os.ReadFile(path); string(b) == context.Canceled.Error() {
					break
				}
				expect(time.Now().Before(left), "an actor ended without Close")
			}
		}
	},
	"cancel": func(ctx context.Context) {
		h := count10(ctx)
		expect(h.Ready(ctx) == nil, "not ready")
		running, waiting := Sleep.Submit(ctx, h, time.Hour), Add.Submit(ctx, h, 1)
		waiting.Cancel()
		_, err := waiting.Get(ctx)
		expect(errors.Is(err, launcher.ErrCancelled), "%v", err)
		running.Cancel()
		_, err = running.Get(ctx)
		expect(errors.Is(err, launcher.ErrCancelled), "%v", err)
		v, err := Value.Submit(ctx, h).Get(ctx)
		expect(v == 10 && err == nil, "%d, %v", v, err)
	},
	"named": func(ctx context.Context) {
		_, err := launcher.FindActor[*counter](ctx, "c")
		expect(errors.Is(err, launcher.ErrNoActor), "%v", err)
		h := count10(ctx, launcher.ActorName("c"))
		_, err = Counters.New(ctx, 1, launcher.ActorName("c"))
		expect(errors.Is(err, launcher.ErrActorExists), "%v", err)
		same, err := Counters.New(ctx, 1, launcher.ActorName("c"), launcher.GetIfExists())
		expect(err == nil && same.ID() == h.ID(), "%v, %v", same, err)
		found, err := launcher.FindActor[*counter](ctx, "c")
		expect(err == nil && found.ID() == h.ID(), "%v, %v", found, err)
		_, err = launcher.FindActor[*room](ctx, "c")
		expect(err != nil, "a counter is a room")
		_, err = Counters.New(ctx, 1, launcher.ActorName("d"), launcher.MaxConcurrency(0))
		expect(err != nil && !errors.Is(err, launcher.ErrActorExists), "%v", err)
		for range 3 { // neither one that was not made nor one that was killed has the name
			next := count10(ctx, launcher.ActorName("d"))
			next.Kill()
		}
		v, err := Add.Submit(ctx, found, 1).Get(ctx)
		expect(v == 11 && err == nil, "%d, %v", v, err)
		x, err := launcher.FindActor[any](ctx, "c")
		expect(err == nil, "%v", err)
		v, err = launcher.MethodNamed[int]("Add").Submit(ctx, x, 1).Get(ctx)
		expect(v == 12 && err == nil, "%d, %v", v, err)
		_, err = launcher.MethodNamed[int]("Subtract").Submit(ctx, x, 1).Get(ctx)
		expect(err != nil, "a method that there is not")
		_, err = launcher.MethodNamed[int]("UpTo").Submit(ctx, x, 1).Get(ctx)
		expect(err != nil, "a stream that is none")
	},
	"handles": func(ctx context.Context) {
		h, other := count10(ctx), count10(ctx)
		v, err := Poke.Submit(ctx, h, 5).Get(ctx)
		expect(v == 15 && err == nil, "from a task: %d, %v", v, err)
		v, err = Relay.Submit(ctx, other, h, 5).Get(ctx)
		expect(v == 20 && err == nil, "from an actor: %d, %v", v, err)
		me, err := Me.Submit(ctx, h).Get(ctx)
		expect(err == nil && me.ID() == h.ID(), "%v, %v", me, err)
		// The handle that came out of a result holds the actor; the last one ends it.
		h.Release()
		runtime.GC()
		v, err = Value.Submit(ctx, me).Get(ctx)
		expect(v == 20 && err == nil, "%d, %v", v, err)
		named := count10(ctx, launcher.ActorName("gone"))
		expect(named.Ready(ctx) == nil, "not ready")
		named.Release()
		for left := time.Now().Add(time.Minute); !errors.Is(err, launcher.ErrNoActor); {
			expect(time.Now().Before(left), "an actor without handles lives")
			var h launcher.Handle[*counter]
			if h, err = launcher.FindActor[*counter](ctx, "gone"); err == nil {
				h.Release()
			}
		}
	},
	"concurrency": func(ctx context.Context) {
		h, err := Rooms.New(ctx)
		expect(err == nil, "%v", err)
		var refs []launcher.Ref[int]
		for range 8 {
			refs = append(refs, Meet.Submit(ctx, h, 8))
		}
		var io []launcher.Ref[int]
		for range 50 {
			io = append(io, IO.Submit(ctx, h))
		}
		bad, err := launcher.Get(ctx, io...)
		expect(err == nil && !slices.Contains(bad, 1), "two at a time in a group of one: %v, %v", bad, err)
		_, err = launcher.Get(ctx, refs...)
		expect(err == nil, "%v", err)
		most, err := Most.Submit(ctx, h).Get(ctx)
		expect(most == 8 && err == nil, "%d, %v", most, err)
	},
	"pending": func(ctx context.Context) {
		h, err := Rooms.New(ctx, launcher.MaxPendingCalls(3), launcher.ActorName("crowded"))
		expect(err == nil, "%v", err)
		for range 3 {
			Meet.Submit(ctx, h, 4).Release() // it is open whether its Ref is there or not
		}
		_, err = Meet.Submit(ctx, h, 4).Get(ctx)
		expect(errors.Is(err, launcher.ErrPendingCalls), "a fourth call: %v", err)
		other, err := launcher.FindActor[*room](ctx, "crowded")
		expect(err == nil, "%v", err)
		_, err = Meet.Submit(ctx, other, 4).Get(ctx)
		expect(err == nil, "%v", err)
		for n, end := 0, time.Now().Add(time.Minute); n < 10; {
			if _, err = Most.Submit(ctx, h).Get(ctx); err == nil {
				n++
			}
			expect(err == nil || errors.Is(err, launcher.ErrPendingCalls) && time.Now().Before(end), "after the end of all: %v", err)
		}
		_, err = Rooms.New(ctx, launcher.MaxPendingCalls(0))
		expect(err != nil, "no limit at all")
	},
	"values": func(ctx context.Context) {
		h := count10(ctx)
		sum := 0
		for v, err := range UpTo.Submit(ctx, h, 100).All(ctx) {
			expect(err == nil, "%v", err)
			sum += v
		}
		expect(sum == 100*10+5050, "%d", sum)
		big := slices.Repeat([]float64{2}, 300_000)
		m, err := Mean.Submit(ctx, h, big).Get(ctx)
		expect(m == 2 && err == nil, "%v, %v", m, err)
		m, err = Mean.SubmitArg(ctx, h, filled.Submit(ctx, 1000, 3)).Get(ctx)
		expect(m == 3 && err == nil, "%v, %v", m, err)
		made, err := Counters.NewArg(ctx, Add.Submit(ctx, h, 1))
		expect(err == nil, "%v", err)
		v, err := Value.Submit(ctx, made).Get(ctx)
		expect(v == 111 && err == nil, "%v, %v", v, err)
		v, err = Sum.SubmitArg(ctx, launcher.Gather([]launcher.Ref[int]{Add.Submit(ctx, h, 1), Value.Submit(ctx, h)})).Get(ctx)
		expect(v == 224 && err == nil, "%v, %v", v, err)
	},
}

// filledAfter is a slice that is there after something else.
func filledAfter(ctx context.Context, r launcher.Ref[string]) launcher.Ref[[]float64] {
	return after.SubmitArg(ctx, r)
}

var after = launcher.Func(func(context.Context, string) ([]float64, error) { return []float64{1}, nil })

func init() {
	for name, run := range actorPrograms {
		programs["actors "+name] = program(func(ctx context.Context) error {
			run(ctx)
			fmt.Println("all right")
			return nil
		})
	}
	programs["actors nodes"] = program(func(ctx context.Context) error {
		nodes, err := launcher.Nodes(ctx)
		if err != nil {
			return err
		}
		var all []launcher.Handle[*counter]
		for _, n := range nodes {
			h, err := Counters.New(ctx, 0, launcher.OnNode(n.ID))
			if err != nil {
				return err
			}
			if w, err := Where.Submit(ctx, h).Get(ctx); err != nil || w.Node != n.ID {
				return fmt.Errorf("to live on %s: on %s, %w", n.ID, w.Node, err)
			}
			all = append(all, h)
		}
		for _, h := range all {
			for _, n := range nodes { // from tasks everywhere
				if _, err := Poke.With(launcher.OnNode(n.ID)).Submit(ctx, h, 1).Get(ctx); err != nil {
					return err
				}
			}
			for _, other := range all { // and actors everywhere
				if other == h {
					continue // it would wait for itself
				}
				if _, err := Relay.Submit(ctx, other, h, 1).Get(ctx); err != nil {
					return err
				}
			}
			var refs []launcher.Ref[int]
			for range 500 {
				refs = append(refs, Add.Submit(ctx, h, 1))
			}
			for i, r := range refs {
				if v, err := r.Get(ctx); err != nil || v != 4+i {
					return fmt.Errorf("call %d: %d, %w", i, v, err)
				}
			}
		}
		fmt.Println("all right")
		return nil
	})
	programs["actors long"] = program(func(ctx context.Context) error {
		nodes, err := launcher.Nodes(ctx)
		if err != nil {
			return err
		}
		h, err := Counters.New(ctx, 0, launcher.MaxRestarts(-1), launcher.OnNode(nodes[len(nodes)-1].ID))
		if err != nil || h.Ready(ctx) != nil {
			return fmt.Errorf("not made: %w", err)
		}
		wide, err := Rooms.New(ctx, launcher.OnNode(nodes[0].ID))
		if err != nil || wide.Ready(ctx) != nil {
			return fmt.Errorf("not made: %w", err)
		}
		fmt.Println("begun")
		var refs, io []launcher.Ref[int]
		for range 1000 {
			refs, io = append(refs, SlowAdd.Submit(ctx, h, 1)), append(io, IO.Submit(ctx, wide))
		}
		for i, r := range refs {
			if v, err := r.Get(ctx); err != nil || v != i+1 {
				return fmt.Errorf("call %d: %d, %w", i, v, err)
			}
		}
		for i, r := range io {
			if v, err := r.Get(ctx); err != nil || v != 0 {
				return fmt.Errorf("call %d: %d, %w", i, v, err)
			}
		}
		fmt.Println("all right")
		return nil
	})
}

// SlowAdd takes as long as killing an agent in the middle of many takes.
var SlowAdd = launcher.Method(func(c *counter, _ context.Context, n int) (int, error) {
	time.Sleep(2 * time.Millisecond) // sleep: it is what takes time
	c.n += n
	return c.n, nil
}, launcher.Name("SlowAdd"))

func TestActors(t *testing.T) {
	c := up(t, "nodes = 1\nresources = { cpu = 2 }\n")
	for name := range actorPrograms {
		t.Run(name, func(t *testing.T) {
			if r := c.run("actors " + name); r.Code != 0 || r.Out != "all right\n" {
				t.Error(r)
			}
		})
	}
}

// TestActorsOnNodes: actors are called from everywhere.
func TestActorsOnNodes(t *testing.T) {
	c := up(t, "nodes = 2\n")
	if r := c.run("actors nodes"); r.Code != 0 || r.Out != "all right\n" {
		t.Error(r)
	}
}

// TestActorsAgentKilled: each call is run once, in its turn, whatever becomes of the agents.
func TestActorsAgentKilled(t *testing.T) {
	for nodes := 1; nodes <= 2; nodes++ {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := up(t, fmt.Sprintf("nodes = %d\n", nodes))
			p := c.start("actors long")
			for i := range 3 {
				await(t, "an agent", func() bool { return len(c.h.PIDs("agent")) == nodes })
				time.Sleep(500 * time.Millisecond) // sleep: it is to die in the middle of things
				_ = syscall.Kill(c.h.PIDs("agent")[i%nodes], syscall.SIGKILL)
			}
			if r := p(); r.Code != 0 || r.Out != "begun\nall right\n" {
				t.Error(r)
			}
		})
	}
}
