package supervisor_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/agent/supervisor"
	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/errs"
	"launcher/wire"
)

const bound = time.Minute

var basicEnv = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	return ctx
}

func name(i int) wire.Proc {
	return wire.Proc{Try: wire.Try{Task: wire.Task{Job: 7, Index: uint32(i)}, Attempt: 1}}
}

// pipe gives both ends, closed at the end of the test.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func readAll(t testing.TB, f *os.File) string {
	t.Helper()
	f.SetReadDeadline(time.Now().Add(bound))
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatalf("reading output: %v", err)
	}
	return string(b)
}

func nextExit(t testing.TB, c *supervisor.Client) supervisor.Exit {
	t.Helper()
	select {
	case x := <-c.Exits():
		return x
	case <-time.After(bound):
		t.Fatal("no exit within the bound")
		panic("unreachable")
	}
}

func TestSpawnExit(t *testing.T) {
	c := supervisortest.Start(t).Connect(t)
	dir := t.TempDir()
	long := strings.Repeat("x", 100_000)
	cases := []struct {
		name   string
		argv   []string
		env    []string
		code   int32
		signal int32
		out    string
	}{
		{"output", []string{"sh", "-c", "echo out; echo err >&2"}, basicEnv, 0, 0, "out\nerr\n"},
		{"status", []string{"sh", "-c", "exit 75"}, basicEnv, 75, 0, ""},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, basicEnv, 137, 9, ""},
		{"terminated", []string{"sh", "-c", "kill -TERM $$"}, basicEnv, 143, 15, ""},
		{"directory", []string{"pwd"}, basicEnv, 0, 0, dir + "\n"},
		{"stdin is empty", []string{"cat"}, basicEnv, 0, 0, ""},
		{"environment", []string{"sh", "-c", "echo $A"}, []string{"PATH=/bin:/usr/bin", "A=b c"}, 0, 0, "b c\n"},
		{"a message too long for a packet", []string{"sh", "-c", `echo "${#A}"`}, []string{"PATH=/bin:/usr/bin", "A=" + long}, 0, 0, "100000\n"},
		{"own session and group", []string{"sh", "-c", `read -r s < /proc/$$/stat; set -- $s; [ "$1" = "$5" ] && [ "$1" = "$6" ] && echo yes`}, basicEnv, 0, 0, "yes\n"},
		{"no signal blocked or ignored", []string{"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"}, basicEnv, 0, 0, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"},
		{"only its descriptors", []string{"sh", "-c", "for i in 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$i ] && echo $i; done; exit 0"}, basicEnv, 0, 0, "2\n"},
	}
	// Signals 32 and 33 are the C library's own: its posix_spawn, which make uses, leaves
	// them ignored, nobody may change that, and programs do not see them.
	internal := strings.NewReplacer("SigIgn:\t0000000080000000", "SigIgn:\t0000000000000000",
		"SigIgn:\t0000000100000000", "SigIgn:\t0000000000000000", "SigIgn:\t0000000180000000", "SigIgn:\t0000000000000000")
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r, w := pipe(t)
			st, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(i), Argv: tc.argv, Env: tc.env, Dir: dir, Files: []*os.File{nil, w, w}})
			if err != nil {
				t.Fatal(err)
			}
			w.Close()
			out := internal.Replace(readAll(t, r))
			x := nextExit(t, c)
			if out != tc.out || x.Code != tc.code || x.Signal != tc.signal || x.Proc != name(i) || x.PID != st.PID || x.Started != st.At || x.Ended < x.Started {
				t.Errorf("output %q, end %+v; want %q, code %d, signal %d", out, x, tc.out, tc.code, tc.signal)
			}
			if err := c.Ack(name(i)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSpawnErrors(t *testing.T) {
	c := supervisortest.Start(t).Connect(t)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	text := write("text", "#!/bin/sh\n", 0o644)
	broken := write("broken", "not a program", 0o755)
	gone := write("gone", "#!/no/such/interpreter\n", 0o755)
	cases := []struct {
		name  string
		order supervisor.Order
		step  proc.Step
		errno syscall.Errno
		code  int32
		kind  errs.Kind
	}{
		{"no such command", supervisor.Order{Argv: []string{"no-such-command"}}, proc.StepResolve, syscall.ENOENT, 127, errs.NotFound},
		{"no command", supervisor.Order{}, proc.StepResolve, syscall.ENOENT, 127, errs.NotFound},
		{"no such path", supervisor.Order{Argv: []string{"./none"}}, proc.StepExec, syscall.ENOENT, 127, errs.NotFound},
		{"not executable", supervisor.Order{Argv: []string{text}}, proc.StepExec, syscall.EACCES, 126, errs.Permission},
		{"not executable, in PATH", supervisor.Order{Argv: []string{"text"}, Env: []string{"PATH=" + dir}}, proc.StepExec, syscall.EACCES, 126, errs.Permission},
		{"a directory", supervisor.Order{Argv: []string{dir}}, proc.StepExec, syscall.EACCES, 126, errs.Permission},
		{"not a program", supervisor.Order{Argv: []string{broken}}, proc.StepExec, syscall.ENOEXEC, 126, errs.Invalid},
		{"no interpreter", supervisor.Order{Argv: []string{gone}}, proc.StepExec, syscall.ENOENT, 127, errs.NotFound},
		{"no directory", supervisor.Order{Argv: []string{"true"}, Dir: "/no/such"}, proc.StepChdir, syscall.ENOENT, -1, errs.NotFound},
		{"directory is a file", supervisor.Order{Argv: []string{"true"}, Dir: text}, proc.StepChdir, syscall.ENOTDIR, -1, errs.NotFound},
		{"no such core", supervisor.Order{Argv: []string{"true"}, CPUs: []int{1000}}, proc.StepAffinity, syscall.EINVAL, -1, errs.Invalid},
		{"too long", supervisor.Order{Argv: []string{"true", strings.Repeat("x", 3<<20)}}, proc.StepExec, syscall.E2BIG, 126, errs.Invalid},
	}
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			o := tc.order
			o.Proc = name(i)
			if o.Env == nil {
				o.Env = basicEnv
			}
			if o.Dir == "" {
				o.Dir = dir
			}
			_, err := c.Spawn(ctxOf(t), o)
			se, ok := errors.AsType[*proc.StartError](err)
			if !ok {
				t.Fatalf("got %v, want a StartError", err)
			}
			if se.Step != tc.step || se.Errno != tc.errno || se.Code() != tc.code || errs.KindOf(err) != tc.kind || len(errs.HintsOf(err)) == 0 {
				t.Errorf("step %s, errno %v, code %d, kind %v, hints %q; want %s, %v, %d, %v and a hint\n%v",
					se.Step, se.Errno, se.Code(), errs.KindOf(err), errs.HintsOf(err), tc.step, tc.errno, tc.code, tc.kind, err)
			}
		})
	}
	// After all that the starter works as before, on all cores.
	if _, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(99), Argv: []string{"true"}, Env: basicEnv, Dir: dir}); err != nil {
		t.Error(err)
	}
}

func TestSpawnIsIdempotent(t *testing.T) {
	c := supervisortest.Start(t).Connect(t)
	ledger := filepath.Join(t.TempDir(), "ledger")
	o := supervisor.Order{Proc: name(1), Argv: []string{"sh", "-c", "echo ran >> " + ledger}, Env: basicEnv, Dir: "/"}
	first, err := c.Spawn(ctxOf(t), o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Spawn(ctxOf(t), o)
	if err != nil || !again.Known || again.PID != first.PID || again.At != first.At || first.Known {
		t.Errorf("the same order gave %+v then %+v, %v", first, again, err)
	}
	nextExit(t, c)
	if late, err := c.Spawn(ctxOf(t), o); err != nil || !late.Known {
		t.Errorf("the same order after its end gave %+v, %v", late, err)
	}
	if b, _ := os.ReadFile(ledger); string(b) != "ran\n" {
		t.Errorf("the ledger holds %q", b)
	}
}

func TestBindingAndLimits(t *testing.T) {
	c := supervisortest.Start(t).Connect(t)
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for i := range 1024 {
		if all.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	last := cpus[len(cpus)-1]
	run := func(i int, o supervisor.Order) string {
		r, w := pipe(t)
		o.Proc, o.Env, o.Dir, o.Files = name(i), basicEnv, "/", []*os.File{nil, w}
		if _, err := c.Spawn(ctxOf(t), o); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return readAll(t, r)
	}
	status := []string{"sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f2"}
	if got := run(1, supervisor.Order{Argv: status, CPUs: []int{last}}); got != strconv.Itoa(last)+"\n" {
		t.Errorf("bound to %q, want %d", got, last)
	}
	b, _ := os.ReadFile("/proc/self/status")
	if got := run(2, supervisor.Order{Argv: status}); !strings.Contains(string(b), "Cpus_allowed_list:\t"+got) {
		t.Errorf("after a bound process an unbound one has %q", got)
	}
	got := run(3, supervisor.Order{Argv: []string{"sh", "-c", "sleep 0.2; ulimit -c; ulimit -Hf"}, Limits: []proc.Limit{{Resource: unix.RLIMIT_CORE}, {Resource: unix.RLIMIT_FSIZE, Soft: 512, Hard: 1024}}})
	if got != "0\n2\n" {
		t.Errorf("limits %q, want 0 and 2", got)
	}
	if got := run(4, supervisor.Order{Argv: []string{"sh", "-c", "sleep 0.2; cat /proc/self/oom_score_adj"}}); got < "300\n" {
		t.Errorf("oom_score_adj is %q, want it raised", got)
	}
}

func TestNextAgentTakesOver(t *testing.T) {
	s := supervisortest.Start(t)
	c := s.Connect(t)
	hold, release := pipe(t)
	r, w := pipe(t)
	st, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(1), Argv: []string{"sh", "-c", "read x; echo $x; exit 3"}, Env: basicEnv, Dir: "/",
		Files: []*os.File{hold, w, w}, Keep: map[string]*os.File{"out": r, "also": hold}})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.Close()
	if _, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(2), Argv: []string{"sh", "-c", "exit 4"}, Env: basicEnv, Dir: "/"}); err != nil {
		t.Fatal(err)
	}
	if x := nextExit(t, c); x.Code != 4 {
		t.Fatalf("got %+v", x)
	}
	state, err := os.CreateTemp(t.TempDir(), "state")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"state", "state", "dropped"} {
		if err := c.StoreFD(ctxOf(t), n, state); err != nil {
			t.Fatal(err)
		}
	}
	state.WriteString("remember")
	for i := range 100 { // more than fits in one packet
		if err := c.StoreFD(ctxOf(t), "many-"+strconv.Itoa(i), state); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.DropFD("dropped", "unknown"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(9)}); !errs.Is(err, errs.Lost) {
		t.Errorf("an order on a closed connection: %v, want kind lost", err)
	}

	d := s.Connect(t)
	if d.Restarts() != 1 {
		t.Errorf("restarts = %d, want 1", d.Restarts())
	}
	list := d.List()
	slices.SortFunc(list, func(a, b supervisor.ProcInfo) int { return int(a.Proc.Index) - int(b.Proc.Index) })
	if len(list) != 2 || list[0].PID != st.PID || list[0].Started != st.At || list[0].Exit != nil || list[1].Exit == nil || list[1].Exit.Code != 4 {
		t.Fatalf("handed over: %+v", list)
	}
	if x := nextExit(t, d); x.Code != 4 {
		t.Errorf("the end that was not acknowledged came as %+v", x)
	}
	fds := d.FDs()
	for _, f := range fds {
		t.Cleanup(func() { f.Close() })
	}
	names := slices.Sorted(maps.Keys(fds))
	if len(names) != 103 || !slices.Contains(names, "out") || !slices.Contains(names, "state") || !slices.Contains(names, "also") {
		t.Fatalf("descriptors: %q", names)
	}
	if b, _ := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(fds["state"].Fd()))); string(b) != "remember" {
		t.Errorf("the stored file holds %q", b)
	}
	release.WriteString("hello\n")
	if out := readAll(t, fds["out"]); out != "hello\n" {
		t.Errorf("through the stored pipe came %q", out)
	}
	if x := nextExit(t, d); x.Code != 3 || x.PID != st.PID {
		t.Errorf("the process that was taken over ended with %+v", x)
	}
	d.Ack(name(2), name(3))
	d.Release(name(1))
	d.Close()
	e := s.Connect(t)
	if len(e.List()) != 0 || e.Restarts() != 2 {
		t.Errorf("after acknowledgement there are still %+v", e.List())
	}
	for n, f := range e.FDs() {
		f.Close()
		if n == "out" || n == "also" {
			t.Errorf("descriptor %q is still kept", n)
		}
	}
}

func TestSignals(t *testing.T) {
	s := supervisortest.Start(t)
	c := s.Connect(t)
	ctx := ctxOf(t)
	start := func(i int, script string) (supervisor.Started, *os.File) {
		r, w := pipe(t)
		st, err := c.Spawn(ctx, supervisor.Order{Proc: name(i), Argv: []string{"sh", "-c", script}, Dir: "/",
			Env: append(slices.Clone(basicEnv), "LAUNCHER_PROC="+name(i).String()), Files: []*os.File{nil, w}})
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		return st, r
	}
	line := func(f *os.File) string {
		f.SetReadDeadline(time.Now().Add(bound))
		b := make([]byte, 100)
		n, err := f.Read(b)
		if err != nil {
			t.Fatalf("no line: %v", err)
		}
		return strings.TrimSpace(string(b[:n]))
	}

	_, r := start(1, "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.01; done")
	line(r)
	if err := c.Signal(ctx, name(1), unix.SIGUSR1, false); err != nil {
		t.Error(err)
	}
	if x := nextExit(t, c); x.Code != 9 || line(r) != "got" {
		t.Errorf("after SIGUSR1: %+v", x)
	}
	if err := c.Signal(ctx, name(1), unix.SIGTERM, false); !errs.Is(err, errs.NotFound) {
		t.Errorf("a signal to one that ended: %v, want kind not-found", err)
	}
	if err := c.Signal(ctx, name(50), unix.SIGTERM, true); !errs.Is(err, errs.NotFound) {
		t.Errorf("a signal to an unknown one: %v, want kind not-found", err)
	}

	// SIGKILL to the group reaches what left the group but is still below.
	_, r = start(2, "sleep 1000 & setsid sleep 1001 & echo ready; wait")
	line(r)
	if err := c.Signal(ctx, name(2), unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if x := nextExit(t, c); x.Signal != 9 {
		t.Errorf("killed: %+v", x)
	}
	if rest := readAll(t, r); rest != "" { // the end of the pipe: nobody has it any more
		t.Errorf("more output %q", rest)
	}

	// What outlives its main process is known, and ends on order.
	_, r = start(3, "(sleep 1000; echo never) & (setsid sleep 1001; echo never) & echo ready")
	x := nextExit(t, c)
	if x.Code != 0 || !x.Leftover {
		t.Errorf("with leftovers: %+v", x)
	}
	if err := c.Signal(ctx, name(3), unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if out := readAll(t, r); out != "ready\n" {
		t.Errorf("output %q", out)
	}
	if x := func() supervisor.Exit { start(4, "true"); return nextExit(t, c) }(); x.Leftover {
		t.Errorf("without leftovers: %+v", x)
	}
	if err := c.Signal(ctx, name(4), unix.SIGKILL, true); !errs.Is(err, errs.NotFound) {
		t.Errorf("a signal to leftovers that are not: %v, want kind not-found", err)
	}
}

// Strays are found wherever they hide; running processes and theirs are left alone.
func TestSweep(t *testing.T) {
	c := supervisortest.Start(t).Connect(t)
	ctx := ctxOf(t)
	start := func(i int, script string) *os.File {
		r, w := pipe(t)
		_, err := c.Spawn(ctx, supervisor.Order{Proc: name(i), Argv: []string{"sh", "-c", script}, Dir: "/",
			Env: append(slices.Clone(basicEnv), "LAUNCHER_PROC="+name(i).String()), Files: []*os.File{nil, w}})
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r
	}
	started := func(r *os.File, want int) {
		r.SetReadDeadline(time.Now().Add(bound))
		for b, n := make([]byte, 1), 0; n < want; {
			if _, err := r.Read(b); err != nil {
				t.Fatal(err)
			}
			if b[0] == '\n' {
				n++
			}
		}
	}
	named := start(1, "setsid sh -c 'echo here; exec sleep 1000' & exit 0")
	started(named, 1)
	nameless := start(2, "env -i /usr/bin/setsid /bin/sh -c 'echo here; exec /bin/sleep 1000' & exit 0")
	started(nameless, 1)
	running := start(3, "setsid sh -c 'echo here; exec sleep 1000' & (setsid sh -c 'echo here; exec sleep 1000' &); echo me; read x < /dev/tty; exec sleep 1000")
	started(running, 3)
	nextExit(t, c)
	nextExit(t, c)
	if n, err := c.Sweep(ctx); n != 1 || err != nil {
		t.Errorf("the first sweep killed %d, %v; want 1, the one with the name of an ended process", n, err)
	}
	if out := readAll(t, named); out != "" {
		t.Errorf("output %q", out)
	}
	if err := c.Signal(ctx, name(3), unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if x := nextExit(t, c); x.Proc != name(3) || x.Signal != 9 {
		t.Errorf("the running process ended with %+v", x)
	}
	if n, err := c.Sweep(ctx); n < 2 || n > 3 || err != nil { // one more may be just dying
		t.Errorf("the second sweep killed %d, %v; want the two that are left", n, err)
	}
	readAll(t, nameless)
	readAll(t, running)
	if n, err := c.Sweep(ctx); n != 0 || err != nil {
		t.Errorf("a sweep of nothing killed %d, %v", n, err)
	}
}

// A supervisor that dies is noticed by its client, whose calls fail then.
func TestSupervisorGone(t *testing.T) {
	s := supervisortest.Start(t)
	c := s.Connect(t)
	done := make(chan error, 1)
	go func() {
		_, err := c.Spawn(ctxOf(t), supervisor.Order{Proc: name(1), Argv: []string{"true"}, Env: basicEnv, Dir: "/"})
		done <- err
	}()
	<-done
	c.Farewell(ctxOf(t), "test")
	s.Stop()
	select {
	case <-c.Done():
	case <-time.After(bound):
		t.Fatal("the client does not notice")
	}
	if err := c.StoreFD(ctxOf(t), "x", os.Stdout); !errs.Is(err, errs.Lost) {
		t.Errorf("a call afterwards: %v, want kind lost", err)
	}
}

// BenchmarkSpawn is to be compared with BenchmarkExecLoop: the same processes with the
// same pipes, started here.
func BenchmarkSpawn(b *testing.B) {
	for _, flight := range []int{1, 2, 4} {
		b.Run(strconv.Itoa(flight), func(b *testing.B) { benchSpawn(b, flight) })
	}
}
