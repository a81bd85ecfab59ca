package spool_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/spool"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/wire"
)

const bound = time.Minute

// TestMain makes the test binary play an agent that only spools: spooler DIR, with the
// read end of a pipe as descriptor 3. It is there to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "spooler" {
		drained := make(chan bool, 1)
		s, err := spool.Open(spool.Config{Dir: os.Args[2], Log: logx.New(os.Stderr, 0), Segment: 64 << 10, Notify: func(e spool.Event) {
			if e.Kind == spool.Drained {
				drained <- true
			}
		}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := s.Add(name(1, 0), os.NewFile(3, "out"), nil); err != nil {
			os.Exit(1)
		}
		<-drained
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func name(job, i int) wire.Proc {
	return wire.Proc{Try: wire.Try{Task: wire.Task{Job: wire.JobID(job), Index: uint32(i)}, Attempt: 1}}
}

type fixture struct {
	*spool.Spool
	events chan spool.Event
}

func open(t *testing.T, cfg spool.Config) fixture {
	t.Helper()
	f := fixture{events: make(chan spool.Event, 10_000)}
	cfg.Log, cfg.Notify = logx.Discard(), func(e spool.Event) { f.events <- e }
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f.Spool = s
	return f
}

func (f fixture) next(t *testing.T, kind spool.EventKind) spool.Event {
	t.Helper()
	select {
	case e := <-f.events:
		if e.Kind != kind {
			t.Fatalf("event %+v, want kind %d", e, kind)
		}
		return e
	case <-time.After(bound):
		t.Fatalf("no event of kind %d", kind)
		panic("unreachable")
	}
}

func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := spool.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return r, w
}

// contents gives what each process wrote to each stream, from offset off on, and the
// number of frames.
func contents(t *testing.T, s *spool.Spool, job wire.JobID, off int64) (out map[string]string, frames int, end int64) {
	t.Helper()
	out = map[string]string{}
	for {
		b, to, err := s.Read(job, off, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if to == off {
			return out, frames, off
		}
		off = to
		for len(b) > 0 {
			f, data, n, err := wire.ParseLogFrame(b)
			if err != nil || n == 0 {
				t.Fatalf("a broken frame before offset %d: %v", to, err)
			}
			if f.Time == 0 {
				t.Error("a frame without time")
			}
			out[fmt.Sprintf("%d/%d", f.Index, f.Stream)] += string(data)
			frames++
			b = b[n:]
		}
	}
}

func TestOutputArrives(t *testing.T) {
	f := open(t, spool.Config{})
	or, ow := newPipe(t)
	er, ew := newPipe(t)
	if err := f.Add(name(7, 3), or, er); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(ow, "hello ")
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := f.Wait(ctx, 7, 0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(ow, "world\n")
	fmt.Fprint(ew, "oops\n")
	ow.Close()
	ew.Close()
	e := f.next(t, spool.Drained)
	out, _, end := contents(t, f.Spool, 7, 0)
	if out["3/1"] != "hello world\n" || out["3/2"] != "oops\n" || e.Proc != name(7, 3) || e.End != end || e.Lost != 0 {
		t.Errorf("read %q to %d, event %+v", out, end, e)
	}
	if st, ok := f.Job(7); !ok || st.Base != 0 || st.End != end || st.Paused != nil || len(f.Jobs()) != 1 {
		t.Errorf("state %+v", st)
	}
	if _, _, err := f.Read(8, 0, 10); !errs.Is(err, errs.NotFound) {
		t.Errorf("reading another job: %v", err)
	}
	if _, _, err := f.Read(7, end+1, 10); !errs.Is(err, errs.Invalid) {
		t.Errorf("reading past the end: %v", err)
	}
	if err := f.Wait(ctx, 8, 0); !errs.Is(err, errs.NotFound) {
		t.Errorf("waiting for another job: %v", err)
	}
	select {
	case <-f.Changed():
	default:
		t.Error("Changed says nothing")
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := f.Wait(short, 7, end); err == nil {
		t.Error("waiting at the end returned")
	}
}

// Output is taken while it is written, not at the end, and small writes are gathered.
func TestStreams(t *testing.T) {
	f := open(t, spool.Config{})
	r, w := newPipe(t)
	f.Add(name(1, 0), r, nil)
	const lines = 5000
	for i := range lines {
		fmt.Fprintln(w, i)
	}
	w.Close()
	f.next(t, spool.Drained)
	out, frames, _ := contents(t, f.Spool, 1, 0)
	if strings.Count(out["0/1"], "\n") != lines || frames > lines/10 {
		t.Errorf("%d lines in %d frames", strings.Count(out["0/1"], "\n"), frames)
	}
}

// The main process is over; somebody it left behind holds the pipe and writes on.
func TestExitedWithPipeOpen(t *testing.T) {
	f := open(t, spool.Config{})
	r, w := newPipe(t)
	f.Add(name(1, 0), r, nil)
	w.Write(bytes.Repeat([]byte("x"), 60_000))
	f.Exited(name(1, 0))
	if e := f.next(t, spool.Drained); e.End < 60_000 {
		t.Errorf("drained at %d, before all was in", e.End)
	}
	if _, err := w.Write([]byte("y")); err == nil {
		t.Error("the pipe is still read after Drained")
	}
	out, _, _ := contents(t, f.Spool, 1, 0)
	if len(out["0/1"]) != 60_000 {
		t.Errorf("%d bytes", len(out["0/1"]))
	}
	f.Exited(name(1, 5)) // never added
	if err := f.Add(name(1, 6), nil, nil); err != nil {
		t.Fatal(err)
	}
	f.Exited(name(1, 6)) // drained before: nothing more comes of it
	if e := f.next(t, spool.Drained); e.Proc != name(1, 6) {
		t.Errorf("event %+v", e)
	}
	if e := f.next(t, spool.Drained); e.Proc != name(1, 5) {
		t.Errorf("event %+v", e)
	}
	if len(f.events) > 0 {
		t.Errorf("one event more: %+v", <-f.events)
	}
}

// A process can be over before whoever started it comes to add its pipes.
func TestExitedBeforeAdd(t *testing.T) {
	f := open(t, spool.Config{})
	r, w := newPipe(t)
	keep, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(w.Fd())), os.O_WRONLY, 0) // a leftover has it too
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	fmt.Fprint(w, "quick")
	w.Close()
	f.Exited(name(1, 0))
	f.Add(name(2, 0), nil, nil) // comes back when the loop has seen the end
	if e := f.next(t, spool.Drained); e.Proc != name(2, 0) {
		t.Errorf("event %+v", e)
	}
	f.Add(name(1, 0), r, nil)
	e := f.next(t, spool.Drained)
	if out, _, end := contents(t, f.Spool, 1, 0); e.Proc != name(1, 0) || e.End != end || out["0/1"] != "quick" {
		t.Errorf("event %+v, output %q to %d", e, out, end)
	}
}

// The supervisor keeps the read ends too, so a pipe lives on when the spool is done with
// it. Its further fate must not be taken for that of the next pipe with its number.
func TestNumberUsedAgain(t *testing.T) {
	f := open(t, spool.Config{})
	r, w := newPipe(t)
	fd := int(r.Fd())
	kept, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	f.Add(name(1, 0), r, nil)
	f.Exited(name(1, 0)) // while w is open
	f.next(t, spool.Drained)

	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if fds[0] != fd {
		if err := unix.Dup3(fds[0], fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[0])
	}
	w2 := os.NewFile(uintptr(fds[1]), "w2")
	defer w2.Close()
	f.Add(name(1, 1), os.NewFile(uintptr(fd), "r2"), nil)
	f.Add(name(9, 0), nil, nil)
	f.next(t, spool.Drained) // it is watched now
	w.Close()
	f.Add(name(9, 1), nil, nil)
	if e := f.next(t, spool.Drained); e.Proc != name(9, 1) {
		t.Errorf("event %+v", e)
	}
	fmt.Fprint(w2, "late")
	w2.Close()
	f.next(t, spool.Drained)
	if out, _, _ := contents(t, f.Spool, 1, 0); out["1/1"] != "late" {
		t.Errorf("output %q", out)
	}
}

// A flood in one pipe does not keep a line in another.
func TestFairness(t *testing.T) {
	f := open(t, spool.Config{Segment: 1 << 20, JobLimit: 1 << 40})
	var floods []*exec.Cmd
	for i := range 2 {
		r, w := newPipe(t)
		f.Add(name(1, i), r, nil)
		cmd := exec.Command("sh", "-c", "cat /dev/zero")
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		floods = append(floods, cmd)
	}
	defer func() {
		for _, c := range floods {
			c.Process.Kill()
			c.Wait()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	if err := f.Wait(ctx, 1, 1<<20); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() { // the disk of the machine that tests is not for floods
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				st, _ := f.Job(1)
				f.Trim(1, st.End)
			}
		}
	}()
	r, w := newPipe(t)
	f.Add(name(2, 9), r, nil)
	fmt.Fprintln(w, "quiet")
	before, _ := f.Job(1)
	if err := f.Wait(ctx, 2, 0); err != nil {
		t.Fatal(err)
	}
	after, _ := f.Job(1)
	// Each flood has its turn between, and the wake of this goroutine takes a while.
	if d := after.End - before.End; d > 512<<20 {
		t.Errorf("%d bytes of flood went before one line", d)
	}
}

func TestTrimAndRestart(t *testing.T) {
	dir := t.TempDir()
	f := open(t, spool.Config{Dir: dir, Segment: 10_000})
	r, w := newPipe(t)
	f.Add(name(1, 0), r, nil)
	var want strings.Builder
	for i := range 40 {
		line := fmt.Sprintf("%04d %s\n", i, strings.Repeat("z", 1000))
		want.WriteString(line)
		fmt.Fprint(w, line)
		st, _ := f.Job(1)
		for st.End < int64(want.Len()) {
			ctx, cancel := context.WithTimeout(context.Background(), bound)
			if err := f.Wait(ctx, 1, st.End); err != nil {
				t.Fatal(err)
			}
			cancel()
			st, _ = f.Job(1)
		}
	}
	w.Close()
	f.next(t, spool.Drained)
	_, _, end := contents(t, f.Spool, 1, 0)
	_, mid, err := f.Read(1, 0, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	f.Trim(1, mid)
	f.Add(name(9, 0), nil, nil) // comes back when the loop has trimmed
	f.next(t, spool.Drained)
	st, _ := f.Job(1)
	if st.Base == 0 || st.Base > mid || st.End != end {
		t.Errorf("after trimming to %d: %+v", mid, st)
	}
	if _, _, err := f.Read(1, 0, 100); !errs.Is(err, errs.NotFound) {
		t.Errorf("reading what was trimmed: %v", err)
	}
	rest, _, _ := contents(t, f.Spool, 1, mid)
	f.Close()
	f.Close()

	g := open(t, spool.Config{Dir: dir, Segment: 10_000})
	again, _, end2 := contents(t, g.Spool, 1, mid)
	if again["0/1"] != rest["0/1"] || end2 != end || !strings.HasSuffix(want.String(), rest["0/1"]) || len(rest["0/1"]) == 0 {
		t.Errorf("after a restart %d bytes to %d, before %d to %d", len(again["0/1"]), end2, len(rest["0/1"]), end)
	}
	g.Trim(1, end)
	g.Add(name(9, 0), nil, nil)
	g.next(t, spool.Drained)
	g.Close()
	h := open(t, spool.Config{Dir: dir})
	if st, _ := h.Job(1); st.End != end {
		t.Errorf("trimmed to the end and restarted: %+v, want end %d", st, end)
	}
	h.Forget(1)
	h.Add(name(9, 0), nil, nil)
	h.next(t, spool.Drained)
	if _, ok := h.Job(1); ok {
		t.Error("a forgotten job is still there")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "1")); len(left) != 0 {
		t.Errorf("files of a forgotten job: %v", left)
	}
}

// A torn end, cut at every byte, is mended: no byte of data that is in the file is lost,
// and the next frame fits behind it.
func TestTornEnd(t *testing.T) {
	frame := func(s string) []byte {
		return append(wire.LogFrame{Stream: 1, Length: uint32(len(s)), Attempt: 1, Time: 5}.Append(nil), s...)
	}
	whole := append(frame("first"), frame("second")...)
	for cut := len(frame("first")); cut <= len(whole); cut++ {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "1"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "1", "0000000000000000.log"), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := "first" + "second"[:max(0, cut-len(frame("first"))-wire.LogFrameHeader)] + "|third"
		f := open(t, spool.Config{Dir: dir})
		r, w := newPipe(t)
		f.Add(name(1, 0), r, nil)
		fmt.Fprint(w, "|third")
		w.Close()
		f.next(t, spool.Drained)
		if out, _, _ := contents(t, f.Spool, 1, 0); out["0/1"] != want {
			t.Errorf("cut at %d: %q, want %q", cut, out["0/1"], want)
		}
		f.Close()
	}
}

// The agent is killed again and again while a program counts; nothing is lost or
// doubled, and the program notices nothing.
func TestKilledSpooler(t *testing.T) {
	dir := t.TempDir()
	r, w := newPipe(t)
	defer r.Close()
	start := func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "spooler", dir)
		cmd.ExtraFiles = []*os.File{r}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	const last = 100_000
	counter := exec.Command("sh", "-c", "i=0; while [ $i -lt "+strconv.Itoa(last)+" ]; do i=$((i+1)); echo $i; done")
	counter.Stdout = w
	if err := counter.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	rnd := rand.New(rand.NewSource(1))
	segment := filepath.Join(dir, "1")
	size := func() (n int64) {
		files, _ := os.ReadDir(segment)
		for _, f := range files {
			if st, err := f.Info(); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	for range 10 {
		cmd, before := start(), size()
		for deadline := time.Now().Add(bound); size() == before && time.Now().Before(deadline); {
			time.Sleep(100 * time.Microsecond) // sleep: bounded poll
		}
		time.Sleep(time.Duration(rnd.Intn(6_000)) * time.Microsecond) // sleep: anywhere in the flow of output
		cmd.Process.Kill()
		cmd.Wait()
	}
	cmd := start()
	kill := time.AfterFunc(bound, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the last spooler: %v", err)
	}
	if err := counter.Wait(); err != nil {
		t.Errorf("the program: %v", err)
	}
	f := open(t, spool.Config{Dir: dir})
	out, _, _ := contents(t, f.Spool, 1, 0)
	n := 0
	for sc := bufio.NewScanner(strings.NewReader(out["0/1"])); sc.Scan(); {
		n++
		if sc.Text() != strconv.Itoa(n) {
			t.Fatalf("line %d is %q", n, sc.Text())
		}
	}
	if n != last {
		t.Errorf("%d lines, want %d", n, last)
	}
}

// On a full disk one job waits, others go on; with room again nothing is missing.
func TestRootDiskFull(t *testing.T) {
	dir := t.TempDir()
	full, other := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	for _, d := range []string{full, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(full, unix.MNT_DETACH) })
	f := open(t, spool.Config{Dir: dir, Segment: 64 << 10, GiveUp: time.Hour})
	const size = 600_000
	ran := make(chan error, 1)
	r, w := newPipe(t)
	f.Add(name(1, 0), r, nil)
	go func() {
		var err error
		for i := 0; i < size/1000 && err == nil; i++ {
			_, err = fmt.Fprintf(w, "%08d%s\n", i, strings.Repeat("a", 991))
		}
		w.Close()
		ran <- err
	}()
	if e := f.next(t, spool.Paused); e.Job != 1 || !errs.Is(e.Err, errs.Exhausted) || len(errs.HintsOf(e.Err)) == 0 {
		t.Errorf("event %+v", e)
	}
	if st, _ := f.Job(1); st.Paused == nil {
		t.Error("the state does not say that the job waits")
	}
	r2, w2 := newPipe(t)
	f.Add(name(2, 0), r2, nil)
	fmt.Fprint(w2, "fine")
	w2.Close()
	if e := f.next(t, spool.Drained); e.Job != 2 {
		t.Errorf("event %+v", e)
	}
	var got strings.Builder
	off := int64(0)
	for deadline := time.Now().Add(bound); got.Len() < size; {
		if time.Now().After(deadline) {
			t.Fatalf("only %d bytes", got.Len())
		}
		b, to, err := f.Read(1, off, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			_, data, n, _ := wire.ParseLogFrame(b)
			got.Write(data)
			b = b[n:]
		}
		if to == off {
			time.Sleep(time.Millisecond) // sleep: bounded poll
			continue
		}
		off = to
		f.Trim(1, off)
	}
	if err := <-ran; err != nil {
		t.Errorf("the program: %v", err)
	}
	for i, line := range strings.Split(strings.TrimSpace(got.String()), "\n") {
		if !strings.HasPrefix(line, fmt.Sprintf("%08d", i)) || len(line) != 999 {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	for e := f.next(t, spool.Resumed); e.Kind != spool.Drained; e = <-f.events {
	}
}

// Output that nobody acknowledges is bounded; a disk that stays full is given up, and
// what was lost is counted.
func TestLimitAndGiveUp(t *testing.T) {
	f := open(t, spool.Config{JobLimit: 100_000, GiveUp: time.Millisecond})
	r, w := newPipe(t)
	f.Add(name(1, 0), r, nil)
	go func() {
		w.Write(bytes.Repeat([]byte("x"), 160_000))
		w.Close()
	}()
	f.next(t, spool.Paused)
	if e := f.next(t, spool.Failed); e.Job != 1 || e.Err == nil {
		t.Errorf("event %+v", e)
	}
	st, _ := f.Job(1)
	if st.End > 100_000 {
		t.Errorf("%d bytes are kept, the limit is 100000", st.End)
	}
	f.Exited(name(1, 0))
	if e := f.next(t, spool.Drained); e.Lost == 0 || e.End != st.End {
		t.Errorf("event %+v, want a loss and end %d", e, st.End)
	}
}

func TestAddStored(t *testing.T) {
	f := open(t, spool.Config{})
	or, ow := newPipe(t)
	er, ew := newPipe(t)
	other, _ := newPipe(t)
	defer other.Close()
	rest, err := f.AddStored(map[string]*os.File{spool.FDName(name(4, 2), 1): or, spool.FDName(name(4, 2), 2): er, "state": other, "out/bad": other})
	if err != nil || len(rest) != 2 || rest["state"] != other {
		t.Errorf("rest %v, %v", rest, err)
	}
	fmt.Fprint(ow, "a")
	fmt.Fprint(ew, "b")
	ow.Close()
	ew.Close()
	f.next(t, spool.Drained)
	if out, _, _ := contents(t, f.Spool, 4, 0); out["2/1"] != "a" || out["2/2"] != "b" {
		t.Errorf("read %q", out)
	}
}

func TestFDNames(t *testing.T) {
	p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 7, Index: 12}, Attempt: 3}, Rank: 4}
	if n := spool.FDName(p, 2); n != "out/7.12#3/4/2" {
		t.Errorf("name %q", n)
	}
	if q, s, ok := spool.ParseFDName("out/7.12#3/4/2"); !ok || q != p || s != 2 {
		t.Errorf("parsed %v %d %v", q, s, ok)
	}
	for _, bad := range []string{"", "state", "out/", "out/7.12#3/4/3", "out/7.12#3/4", "out/7.12#3/4/2x", "out/07.12#3/4/2", "out/99999999999.1#1/0/1"} {
		if _, _, ok := spool.ParseFDName(bad); ok {
			t.Errorf("%q was taken for a name", bad)
		}
	}
}
