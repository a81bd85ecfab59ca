package supervisor

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// Descriptors that the guard leaves to the supervisor.
const (
	configFD = 3 // memory file with the configuration
	guardFD  = 4 // read end of a pipe whose other end only the guard has
)

// life is what a supervisor keeps alive: an agent or a head.
type life struct {
	name    string   // agent or head
	argv    []string // argv[0] is the path of this binary
	env     []string
	logPath string        // where its standard output and error go; "" = ours
	grace   time.Duration // how long to go on with one that does not stay up
	socket  string        // removed at the end; "" = none
	outlive bool          // it is not killed with us: it has to clean up if our guard is dead too
}

// schedulers is GOMAXPROCS. Two of them sit in system calls most of the time (an order,
// the end of a child); while another is idle the runtime lets them sit, else its monitor
// takes them away every 20 microseconds, which costs more than the work itself.
const schedulers = 4

// small makes this process take little: it has little to do.
func small() {
	runtime.GOMAXPROCS(schedulers)
	debug.SetGCPercent(50)
}

// Main is the supervisor of a node (command `supervise`), started by the guard. It does
// not return but with an error before anything was started.
func Main(ctx context.Context) error {
	small()
	proc.SealFDs()
	runtime.LockOSThread() // children die with the thread that made them
	config, err := readConfig()
	if err != nil {
		return err
	}
	var cfg wire.NodeConfig
	if err := wire.Unmarshal(config, &cfg); err != nil {
		return errs.Wrap(errs.Unknown, err, "the node's configuration")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return errs.Wrap(errs.Unavailable, err, "becoming sub-reaper")
	}
	exe, err := ownBinary()
	if err != nil {
		return err
	}
	log := logx.New(os.Stderr, slog.LevelInfo).With("part", "supervisor", "node", cfg.Node)
	s, err := newServer(log, config, markVar+"="+os.Getenv(markVar))
	if err != nil {
		return err
	}
	// A short grace is about the head's absence; an agent that is killed again and again is
	// started again for longer.
	const leastGrace = time.Minute
	l := life{name: "agent", argv: []string{exe, "agent"}, env: os.Environ(), logPath: logPath(cfg.Dir),
		grace: max(time.Duration(cfg.Grace), leastGrace), socket: socketPath(cfg.Dir), outlive: true}
	return s.run(ctx, l, os.NewFile(guardFD, "guard"))
}

func logPath(dir string) string    { return filepath.Join(dir, "agent.log") }
func socketPath(dir string) string { return filepath.Join(dir, "agent.sock") }

// readConfig takes the configuration out of the guard's memory file.
func readConfig() ([]byte, error) {
	f := os.NewFile(configFD, "config")
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxConfig))
	if err != nil || len(b) == 0 {
		return nil, errs.New(errs.Invalid, "no configuration on descriptor %d: `supervise` is started by `launcher node`", configFD)
	}
	return b, nil
}

// ownBinary is a path that starts this very binary, also after another one has been put
// in its place: agents must be of their supervisor's version.
func ownBinary() (string, error) {
	exe, err := os.Executable()
	if err == nil {
		a, err1 := os.Stat(exe)
		b, err2 := os.Stat("/proc/self/exe")
		if err1 == nil && err2 == nil && os.SameFile(a, b) {
			return exe, nil
		}
	}
	if _, err := os.Stat("/proc/self/exe"); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "finding this program's file")
	}
	return "/proc/self/exe", nil
}

// ignoreNothing catches what whoever started us ignores (nohup, a shell's &), since
// children inherit what is ignored, but not what is caught.
func ignoreNothing() {
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// run keeps l alive until it is done, then kills everything below and exits the process.
// guard is a pipe whose end means that the guard is dead; nil = there is none.
func (s *server) run(ctx context.Context, l life, guard *os.File) error {
	stop := make(chan struct{})
	sigs := make(chan os.Signal, 8)
	ignoreNothing()
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	go s.watchSignals(ctx, sigs, stop, l)
	if guard != nil {
		go func() {
			_, _ = guard.Read(make([]byte, 1))
			s.log.Error("the guard is gone: ending everything")
			s.die(1, l)
		}()
	}
	go s.reap()
	if l.grace <= 0 {
		l.grace = defaultGrace
	}
	status := s.keepAlive(l, stop)
	s.endProcs()
	s.die(status, l)
	return nil
}

// sameOrder is within what time a second SIGTERM is the first one over again: Slurm may send
// it to all processes of a node, and the guard hands its own on.
const sameOrder = time.Second

// watchSignals turns the first SIGTERM or SIGINT (or the end of ctx) into an orderly
// stop and the second, or the end of the stop's time, into the end of everything.
func (s *server) watchSignals(ctx context.Context, sigs <-chan os.Signal, stop chan<- struct{}, l life) {
	var late <-chan time.Time
	var told time.Time
	done := ctx.Done()
	for {
		select {
		case sig := <-sigs:
			switch sig {
			case unix.SIGHUP:
				continue
			case unix.SIGUSR1, unix.SIGUSR2:
				s.mu.Lock()
				if s.agentPID != 0 {
					_ = unix.Kill(s.agentPID, sig.(unix.Signal))
				}
				s.mu.Unlock()
				continue
			}
		case <-done:
			done = nil
		case <-late:
			s.log.Error("the orderly stop took too long", "part", l.name, "bound", stopGrace)
			s.die(1, l)
		}
		if late != nil {
			if time.Since(told) < sameOrder {
				continue
			}
			s.die(1, l)
		}
		late, told = time.After(stopGrace), time.Now()
		s.mu.Lock()
		s.stopping = true
		close(stop)
		if s.agentPID != 0 {
			_ = unix.Kill(s.agentPID, unix.SIGTERM)
		}
		s.mu.Unlock()
	}
}

// keepAlive starts l again whenever it dies. It gives the status to end with.
func (s *server) keepAlive(l life, stop <-chan struct{}) int {
	var restarts uint32
	var trouble time.Time // the first death after the last steady life
	var pause time.Duration
	for {
		began := time.Now()
		end, err := s.live(l, restarts)
		code, sig := end.Code()
		why := s.over()
		switch {
		case why != "":
			s.log.Info("ending", "part", l.name, "why", why, "code", code)
			return ExitDone
		case err == nil && sig == 0 && code == ExitDone:
			s.log.Info("done", "part", l.name)
			return ExitDone
		case err == nil && sig == 0 && code == ExitFatal:
			s.log.Error("cannot go on", "part", l.name)
			return ExitFatal
		}
		restarts++
		switch {
		case time.Since(began) >= steady:
			pause, trouble = 0, time.Time{}
		case trouble.IsZero():
			pause, trouble = 0, began
		default:
			pause = min(max(2*pause, 50*time.Millisecond), 2*time.Second)
		}
		s.log.Warn("died; starting it again", "part", l.name, "code", code, "signal", sig, "restarts", restarts, "pause", pause, "err", err)
		if !trouble.IsZero() && time.Since(trouble) > l.grace {
			s.log.Error("does not stay up: giving up", "part", l.name, "since", trouble)
			return ExitFatal
		}
		select {
		case <-time.After(pause):
		case <-stop:
			return ExitDone
		}
	}
}

// over says why the work is over: by order, or because the agent said so; "" = it is not.
func (s *server) over() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return "stopped"
	}
	return s.farewell
}

// live starts l once, serves it, and gives its end.
func (s *server) live(l life, restarts uint32) (proc.Ended, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return proc.Ended{}, err
	}
	pid, err := s.start(l, theirs)
	_ = unix.Close(theirs)
	if err != nil {
		_ = unix.Close(ours)
		return proc.Ended{}, err
	}
	s.serve(ours, restarts)
	// It is dead, or about to end; one that only closed its socket is of no use.
	patience := time.NewTimer(steady)
	defer patience.Stop()
	for {
		select {
		case end := <-s.agentEnd:
			return end, nil
		case <-patience.C:
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// start starts l with its end of the socket.
func (s *server) start(l life, socket int) (pid int, err error) {
	out, errOut := 1, 2
	if l.logPath != "" {
		fd, err := openLog(l.logPath)
		if err != nil {
			s.log.Warn("no log file; its output goes to ours", "part", l.name, "err", err)
		} else {
			defer unix.Close(fd)
			out, errOut = fd, fd
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dying || s.stopping {
		return 0, errs.New(errs.Cancelled, "ending")
	}
	pid, err = s.starter.Start(&proc.Spec{Argv: l.argv, Env: l.env, Files: []int{s.null, out, errOut, socket}, Outlive: l.outlive})
	if err == nil {
		s.agentPID = pid
		s.wakeReaper()
	}
	return pid, err
}

// maxLog bounds the file that panics and other last words go to. A process in a loop of
// deaths must not fill the disk with them.
const maxLog = 16 << 20

func openLog(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Size > maxLog {
		_ = unix.Ftruncate(fd, 0)
	}
	return fd, nil
}

// endProcs ends the processes that the agent left: SIGTERM, a moment, and what is still
// there is killed by die.
func (s *server) endProcs() {
	deadline := time.Now().Add(termGrace)
	for first := true; ; first = false {
		s.mu.Lock()
		n := len(s.pids)
		if first {
			for pid := range s.pids {
				_ = unix.Kill(-pid, unix.SIGTERM)
			}
		}
		s.mu.Unlock()
		if n == 0 || time.Now().After(deadline) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const termGrace = 5 * time.Second

// die kills everything below and ends this process. It may be called by any goroutine,
// by several at once.
func (s *server) die(status int, l life) {
	s.mu.Lock()
	s.dying = true
	for s.starting {
		s.known.Wait()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), killBound)
	defer cancel()
	if left := proc.KillBelow(ctx); len(left) > 0 {
		s.log.Error("processes do not die", "first", left[0].PID, "count", len(left))
	}
	if l.socket != "" {
		_ = sockpath.Remove(l.socket)
	}
	os.Exit(status)
}

// lock makes sure that there is one of us for a directory. The lock is the kernel's and
// goes with the process. On a file system without locks the epoch alone must do.
func lock(path string, patience time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Permission, err, "cannot write in %s", filepath.Dir(path)).Hint("is it yours, and is there space on the disk?")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			return f, nil
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			if time.Now().After(deadline) {
				f.Close()
				return nil, errs.New(errs.Exists, "%s is in use by a running supervisor", filepath.Dir(path))
			}
		default:
			return f, nil
		}
	}
}
