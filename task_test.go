//go:build linux

package launcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"launcher/shm/objects"

	"launcher/wire"
	"launcher/wire/sdk"
)

type point struct {
	X, Y int
	Name string
	Tags map[string][]float64
}

var errOdd = errors.New("an odd one")

func init() { RegisterError(errOdd) }

var (
	square = Func(func(_ context.Context, x int) (int, error) { return x * x, nil }, Name("square"))
	add    = Func2(func(_ context.Context, a, b float64) (float64, error) { return a + b, nil }, Name("add"))
	hi     = Func0(func(context.Context) (string, error) { return "hi", nil }, Name("hi"))
	same   = Func(func(_ context.Context, p *point) (*point, error) { return p, nil }, Name("same"))
	sum    = Func(func(_ context.Context, v []float64) (s float64, _ error) {
		for _, x := range v {
			s += x
		}
		return s, nil
	}, Name("sum"))
	upTo = Func(func(_ context.Context, n int) ([]int64, error) {
		v := make([]int64, n)
		for i := range v {
			v[i] = int64(i)
		}
		return v, nil
	}, Name("upTo"))
	fails = Func(func(_ context.Context, how string) (int, error) {
		switch how {
		case "odd":
			return 0, fmt.Errorf("looking: %w", errOdd)
		case "eof":
			return 0, io.EOF
		case "panic":
			var m map[string]int
			m["x"] = 1
		case "goexit":
			runtime.Goexit()
		}
		return 1, nil
	}, Name("fails"))
	waits = Func0(func(ctx context.Context) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}, Name("waits"))
	counting = StreamFunc(func(ctx context.Context, n int) iter.Seq2[string, error] {
		return func(yield func(string, error) bool) {
			for i := range n {
				if !yield(fmt.Sprint(i), nil) {
					return
				}
			}
			if n == 13 {
				yield("", errOdd)
			}
		}
	}, Name("count"))
	whoAmI = Func0(func(ctx context.Context) (TaskInfo, error) {
		info, _ := Task(ctx)
		return info, nil
	}, Name("whoAmI"))
	bad      = Func(func(_ context.Context, f func()) (int, error) { return 0, nil }, Name("bad"))
	scribble = Func(func(_ context.Context, v []float64) (float64, error) {
		v[0]++
		return v[0], nil
	}, Name("scribble"))
	refs = Func(func(ctx context.Context, rs map[string]Ref[int]) (Ref[int], error) { return rs["b"], nil }, Name("refs"))
)

// fib is registered in init: a variable whose value mentions itself cannot be.
var fib Function[int, int]

func init() {
	fib = Func(func(ctx context.Context, n int) (int, error) {
		if n < 2 {
			return n, nil
		}
		v, err := Get(ctx, fib.Submit(ctx, n-1), fib.Submit(ctx, n-2))
		if err != nil {
			return 0, err
		}
		return v[0] + v[1], nil
	}, Name("fib"))
}

// TestNested: the only worker runs what its own task waits for.
func TestNested(t *testing.T) {
	startFake(t)
	ctx := t.Context()
	others := []Ref[int]{square.Submit(ctx, 1), fib.Submit(ctx, 12), square.Submit(ctx, 2), square.Submit(ctx, 3)}
	if v, err := Get(ctx, others...); err != nil || v[1] != 144 || v[3] != 9 {
		t.Error(v, err)
	}
}

func TestTasks(t *testing.T) {
	startFake(t)
	ctx := t.Context()
	if v, err := square.Submit(ctx, 12).Get(ctx); v != 144 || err != nil {
		t.Error(v, err)
	}
	if v, err := add.Submit(ctx, 1.5, 2).Get(ctx); v != 3.5 || err != nil {
		t.Error(v, err)
	}
	if v, err := hi.Submit(ctx).Get(ctx); v != "hi" || err != nil {
		t.Error(v, err)
	}
	p := &point{X: 1, Name: "é", Tags: map[string][]float64{"a": {1, 2}}}
	if v, err := same.Submit(ctx, p).Get(ctx); err != nil || v.X != 1 || v.Name != "é" || !slices.Equal(v.Tags["a"], p.Tags["a"]) {
		t.Error(v, err)
	}
	if v, err := sum.Submit(ctx, []float64{1, 2, 3}).Get(ctx); v != 6 || err != nil {
		t.Error(v, err)
	}
	if v, err := upTo.Submit(ctx, 4).Get(ctx); !slices.Equal(v, []int64{0, 1, 2, 3}) || err != nil {
		t.Error(v, err)
	}
	// Chains, lists of references, references beside values.
	a, b := add.Submit(ctx, 1, 1), add.Submit(ctx, 2, 2)
	if v, err := sum.SubmitArg(ctx, Gather([]Ref[float64]{a, b, a})).Get(ctx); v != 8 || err != nil {
		t.Error(v, err)
	}
	if v, err := add.SubmitArg(ctx, a, V(10.0)).Get(ctx); v != 12 || err != nil {
		t.Error(v, err)
	}
	put, err := Put(ctx, 7)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := put.Get(ctx); v != 7 || err != nil {
		t.Error(v, err)
	}
	if v, err := square.SubmitArg(ctx, put).Get(ctx); v != 49 || err != nil {
		t.Error(v, err)
	}
	// References inside values.
	if r, err := refs.Submit(ctx, map[string]Ref[int]{"a": put, "b": square.Submit(ctx, 3)}).Get(ctx); err != nil {
		t.Error(err)
	} else if v, err := r.Get(ctx); v != 9 || err != nil {
		t.Error(v, err)
	}
	if who, err := whoAmI.Submit(ctx, Name("someone")).Get(ctx); err != nil || who.Name != "someone" || who.Attempt != 1 || len(who.ID) != 32 || who.Node != "n1" {
		t.Errorf("%+v, %v", who, err)
	}
	// Several results.
	parts := SubmitN(ctx, upTo, 3, 3)
	if v, err := Get(ctx, parts...); err != nil || !slices.Equal(v, []int64{0, 1, 2}) {
		t.Error(v, err)
	}
	if _, err := SubmitN(ctx, upTo, 3, 4)[2].Get(ctx); err == nil || !strings.Contains(err.Error(), "gave 4 values, 3 were to come") {
		t.Error(err)
	}
}

func TestManyInOrder(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	var rs []Ref[int]
	for i := range 3000 {
		rs = append(rs, square.Submit(ctx, i))
	}
	for i, r := range rs {
		if v, err := r.Get(ctx); v != i*i || err != nil {
			t.Fatal(i, v, err)
		}
	}
	n.with(func() {
		if n.counts[sdk.MsgGet] > 100 {
			t.Errorf("%d Get frames for 3000 results got one after the other", n.counts[sdk.MsgGet])
		}
	})
	runtime.KeepAlive(rs)
}

func TestFailures(t *testing.T) {
	startFake(t)
	ctx := t.Context()
	_, err := fails.Submit(ctx, "odd").Get(ctx)
	var te *TaskError
	if !errors.Is(err, errOdd) || !errors.As(err, &te) || te.Code != "task" || te.Task != "fails" || te.Message != "looking: an odd one" || te.Node != "n1" {
		t.Errorf("%+v", err)
	}
	for code, want := range map[string]string{"lost": "task f: gone", "actor_unschedulable": "actor f: gone", "actor_unavailable": "task f: gone"} {
		if e := (&TaskError{Code: code, Task: "f", Message: "gone"}); e.Error() != want {
			t.Errorf("%s: %s", code, e)
		}
	}
	if _, err := fails.Submit(ctx, "eof").Get(ctx); err == nil || errors.Is(err, io.EOF) || errors.Is(err, errOdd) {
		t.Error("an error that is not registered is a text:", err)
	}
	if _, err := fails.Submit(ctx, "panic").Get(ctx); !errors.As(err, &te) || !strings.Contains(te.Message, "nil map") || !strings.Contains(te.Trace, "task_test.go") {
		t.Errorf("%v", err)
	}
	if _, err := fails.Submit(ctx, "goexit").Get(ctx); err == nil || !strings.Contains(err.Error(), "ended its goroutine") {
		t.Error(err)
	}
	if v, err := fails.Submit(ctx, "").Get(ctx); v != 1 || err != nil {
		t.Error("after a Goexit:", v, err)
	}
	// What cannot be passed on, options that cannot be.
	if _, err := bad.Submit(ctx, func() {}).Get(ctx); err == nil || !strings.Contains(err.Error(), "func()") {
		t.Error(err)
	}
	if _, err := square.Submit(ctx, 1, CPU(-1)).Get(ctx); err == nil || !strings.Contains(err.Error(), "CPU -1") {
		t.Error(err)
	}
	r := square.Submit(ctx, 2)
	r.Release()
	if _, err := r.Get(ctx); !errors.Is(err, ErrReleased) {
		t.Error(err)
	}
	if _, err := square.SubmitArg(ctx, r).Get(ctx); !errors.Is(err, ErrReleased) {
		t.Error(err)
	}
	if _, err := (Ref[int]{}).Get(ctx); err == nil {
		t.Error("an empty Ref has a value")
	}
	if _, err := Get(ctx, square.Submit(ctx, 1), fails.Submit(ctx, "odd"), waits.Submit(ctx)); !errors.Is(err, errOdd) {
		t.Error(err)
	}
}

func TestCancelAndTimeout(t *testing.T) {
	startFake(t)
	ctx := t.Context()
	r := waits.Submit(ctx)
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	if _, err := r.Get(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	r.Cancel()
	if _, err := r.Get(ctx); !errors.Is(err, ErrCancelled) {
		t.Error(err)
	}
	if _, err := square.Submit(short, 1).Get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestWait(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	n.with(func() { n.hold = true })
	held := square.Submit(ctx, 1)
	p, err := Put(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	if ready, rest := Wait(short, []AnyRef{held, p}, 2); len(ready) != 1 || len(rest) != 1 || rest[0] != AnyRef(held) {
		t.Error(ready, rest)
	}
	if ready, rest := Wait(ctx, []AnyRef{held, p}, 1); len(ready) != 1 || len(rest) != 1 {
		t.Error(ready, rest)
	}
	n.with(func() { n.hold = false })
	if ready, rest := Wait(ctx, []Ref[int]{held}, 1); len(ready) != 1 || len(rest) != 0 {
		t.Error(ready, rest)
	}
}

func TestStream(t *testing.T) {
	startFake(t)
	ctx := t.Context()
	var got []string
	for v, err := range counting.Submit(ctx, 20).All(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if len(got) != 20 || got[19] != "19" {
		t.Error(got)
	}
	var last error
	n := 0
	for _, err := range counting.Submit(ctx, 13).All(ctx) {
		n++
		last = err
	}
	if n != 14 || !errors.Is(last, errOdd) {
		t.Error(n, last)
	}
}

func TestReleaseByCollector(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	func() {
		for i := range 10 {
			if _, err := square.Submit(ctx, i).Get(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}()
	for deadline := time.Now().Add(time.Minute); ; {
		runtime.GC()
		n.mu.Lock()
		done := len(n.released) >= 10
		n.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("unused results are not released")
		}
	}
}

func TestReconnect(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	n.with(func() { n.hold = true })
	var rs []Ref[int]
	for i := range 10 {
		rs = append(rs, square.Submit(ctx, i))
	}
	Wait(shortly(t), rs, 1)
	n.with(func() { n.driver.conn.Close() })
	rs = append(rs, square.Submit(ctx, 10))
	n.with(func() { n.hold = false })
	v, err := Get(ctx, rs...)
	if err != nil || v[10] != 100 || v[3] != 9 {
		t.Error(v, err)
	}
}

// A worker that waits hands back, when its agent is there again, the first task that it is
// given and has not begun: with what it said before the new agent can do nothing.
func TestHandsBackToTheNewAgent(t *testing.T) {
	c := makeClient(greetingOf(sdk.KindWorker), nil)
	w := c.worker
	c.mu.Lock()
	defer c.mu.Unlock()
	give := func(task byte, sequence uint32) int {
		b := make([]byte, 56)
		b[0] = task
		binary.LittleEndian.PutUint32(b[32:], 1)
		binary.LittleEndian.PutUint32(b[36:], sequence)
		if err := w.exec(c, b); err != nil {
			t.Fatal(err)
		}
		return len(w.queue)
	}
	sent := func() (out []uint16) {
		for b := c.out.buf[c.out.proven-c.out.base:]; len(b) > 0; b = b[4+binary.LittleEndian.Uint32(b):] {
			out = append(out, binary.LittleEndian.Uint16(b[4:]))
		}
		return out
	}
	w.handBack(1)
	c.out.begin(sdk.MsgSpace)
	c.out.u64(1<<20, 1000)
	c.out.close()
	w.stack = []*order{{task: taskID{1}, attempt: 1}}
	c.waiting = 1
	end := c.out.end()
	w.resume()
	c.out.voidRequests()
	if got := sent(); c.out.end() != end || !slices.Equal(got, []uint16{sdk.MsgDropped, sdk.MsgCall, sdk.MsgDropped}) {
		t.Fatalf("frames %#x are repeated, up to %d of %d", got, c.out.end(), end)
	}
	if n := give(1, 7); n != 0 || c.out.end() != end {
		t.Fatalf("what runs is given again: %d in the queue", n)
	}
	if n := give(2, 8); n != 0 || !slices.Equal(sent()[3:], []uint16{sdk.MsgHandBack, sdk.MsgCall}) {
		t.Fatalf("%d in the queue; frames %#x", n, sent())
	}
	if n := give(3, 9); n != 0 {
		t.Fatal("what was on its way is taken")
	}
	c.proves(c.out.end())
	if n := give(2, 10); n != 1 {
		t.Fatal("what is given then is not taken")
	}
	c.out.armed = false
}

func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestSharedMemory(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	v := make([]float64, 100_000)
	for i := range v {
		v[i] = 1
	}
	r, err := Put(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.View(ctx)
	if err != nil || len(w.Value) != len(v) || w.Value[99_999] != 1 {
		t.Fatal(len(w.Value), err)
	}
	if c := theClient.Load(); !inSegment(c, w.Value) {
		t.Error("a View that is a copy")
	}
	pinned := 0
	n.driver.pins.Scan(func(objects.PinKey) { pinned++ })
	w.Release()
	w.Release()
	n.driver.pins.Scan(func(objects.PinKey) { pinned-- })
	if pinned != 1 || w.Value != nil {
		t.Error("the pin of a View:", pinned)
	}
	mine, err := r.Get(ctx)
	if err != nil || inSegment(theClient.Load(), mine) {
		t.Error("Get gives shared memory, or", err)
	}
	mine[0] = 7 // and can be written
	for _, ref := range []Ref[float64]{sum.SubmitArg(ctx, r), sum.Submit(ctx, v)} {
		if s, err := ref.Get(ctx); s != 100_000 || err != nil {
			t.Error(s, err)
		}
	}
	// A large result, a large argument of the general kind.
	if v, err := upTo.Submit(ctx, 20_000).Get(ctx); err != nil || v[19_999] != 19_999 {
		t.Error(err)
	}
	p := &point{Name: strings.Repeat("x", 100_000)}
	if v, err := same.Submit(ctx, p).Get(ctx); err != nil || v.Name != p.Name {
		t.Error(err)
	}
	// So many arguments that they are an object of their own.
	one, err := Put(ctx, 1.0)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := sum.SubmitArg(ctx, Gather(slices.Repeat([]Ref[float64]{one}, 20_000))).Get(ctx); s != 20_000 || err != nil {
		t.Error(s, err)
	}
	if _, err := scribble.SubmitArg(ctx, r).Get(ctx); err == nil || !strings.Contains(err.Error(), "fault") || len(hintsOf(err)) == 0 {
		t.Error("an argument in shared memory was written:", err)
	}
	if s, err := scribble.Submit(ctx, []float64{1}).Get(ctx); s != 2 || err != nil {
		t.Error(s, err)
	}
	if _, err := Put(ctx, make([]byte, 33<<20)); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	n.work.pins.Scan(func(objects.PinKey) { t.Error("the worker holds an argument of a task that ended") })
}

// inSegment reports whether a slice lies in shared memory.
func inSegment(c *client, v []float64) bool {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(v)))
	for _, s := range *c.store.segments.Load() {
		from := uintptr(unsafe.Pointer(unsafe.SliceData(s.Bytes())))
		if at >= from && at < from+uintptr(len(s.Bytes())) {
			return true
		}
	}
	return false
}

// TestPutCopies: copies are asked for after the value is told, before Put returns.
func TestPutCopies(t *testing.T) {
	n := startFake(t)
	ctx := t.Context()
	r, err := Put(ctx, 7, Copies(2))
	if err != nil {
		t.Fatal(err)
	}
	id := r.h.o.id
	want := wire.Marshal([]any{"copies", id[:], 2})
	n.mu.Lock()
	if len(n.asked) != 1 || !bytes.Equal(n.asked[0], want) || n.objects[id] == nil {
		t.Errorf("asked %q, wanted %q", n.asked, want)
	}
	n.mu.Unlock()
	if _, err := Put(ctx, 7, Copies(0)); err == nil {
		t.Error("no copies are fine")
	}
}
