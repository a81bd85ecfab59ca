package proc

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Starter starts processes. It is made and used by one goroutine that is locked to its
// thread and never ends: children die (SIGKILL) with that thread.
type Starter struct {
	all, now unix.CPUSet // affinity of the thread: its own, and as it is set now
	oom      int
	found    map[lookup]program
}

// lookup is a program's name with what decides where it is.
type lookup struct{ name, path, dir string }

// program is where one was found, and when.
type program struct {
	file string
	at   time.Time
}

// Programs are looked for in PATH, which may be long, once for a while: tasks come in
// thousands.
const (
	foundFor = time.Second
	maxFound = 256
)

// NewStarter makes the Starter of the calling thread.
func NewStarter() (*Starter, error) {
	s := &Starter{}
	if err := unix.SchedGetaffinity(0, &s.all); err != nil {
		return nil, err
	}
	s.now = s.all
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		s.oom, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return s, nil
}

// Start starts a process in a session and process group of its own. The error is a
// *StartError.
func (s *Starter) Start(spec *Spec) (pid int, err error) {
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return 0, &StartError{StepResolve, syscall.ENOENT, ""}
	}
	path, known, errno := s.resolve(spec)
	if errno != 0 {
		step := StepResolve
		if errno != syscall.ENOENT {
			step = StepExec
		}
		return 0, &StartError{step, errno, spec.Argv[0]}
	}
	if err := s.bind(spec.CPUs); err != nil {
		return 0, &StartError{StepAffinity, errnoOf(err), spec.Argv[0]}
	}
	files := make([]uintptr, len(spec.Files))
	for i, fd := range spec.Files {
		files[i] = uintptr(fd)
	}
	// A new session: signals of a terminal and of the supervisor's group pass it by.
	sys := &syscall.SysProcAttr{Setsid: true}
	if !spec.Outlive {
		sys.Pdeathsig = syscall.SIGKILL // a belt: the guard kills what is left when we die
	}
	attr := &syscall.ProcAttr{Dir: spec.Dir, Env: spec.Env, Files: files, Sys: sys}
	pid, err = syscall.ForkExec(path, spec.Argv, attr)
	if err != nil && known { // it may have moved
		clear(s.found)
		if again, _, errno := s.resolve(spec); errno == 0 {
			path = again
			pid, err = syscall.ForkExec(path, spec.Argv, attr)
		}
	}
	if err != nil {
		return 0, s.explain(spec, path, errnoOf(err))
	}
	s.raiseOOM(pid, spec.OOM)
	for _, l := range spec.Limits {
		if err := unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			_ = syscall.Kill(-pid, syscall.SIGKILL) // the caller reaps it
			return pid, &StartError{StepLimit, errnoOf(err), spec.Argv[0]}
		}
	}
	return pid, nil
}

// bind sets the thread's cores to those of the next child.
func (s *Starter) bind(cpus []int) error {
	want := s.all
	if cpus != nil {
		want = unix.CPUSet{}
		for _, c := range cpus {
			want.Set(c)
		}
	}
	if want == s.now {
		return nil
	}
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return err
	}
	s.now = want
	return nil
}

// raiseOOM makes the kernel prefer the child to us when memory runs out. Raising is
// always allowed; that it fails for a child that has ended or changed its user is fine.
func (s *Starter) raiseOOM(pid, by int) {
	if by <= 0 {
		return
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, strconv.AppendInt(nil, int64(min(s.oom+by, 1000)), 10))
	_ = unix.Close(fd)
}

// explain finds the step at which a start failed; the kernel's answer to fork, chdir
// and exec comes as one bare number.
func (s *Starter) explain(spec *Spec, path string, errno syscall.Errno) error {
	if spec.Dir != "" {
		var st unix.Stat_t
		err := unix.Stat(spec.Dir, &st)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
		}
		if err == nil {
			err = unix.Faccessat(unix.AT_FDCWD, spec.Dir, unix.X_OK, unix.AT_EACCESS)
		}
		if err != nil && errnoOf(err) == errno {
			return &StartError{StepChdir, errno, spec.Dir}
		}
	}
	if errno == syscall.EAGAIN || errno == syscall.ENOMEM || errno == syscall.EMFILE || errno == syscall.ENFILE {
		return &StartError{StepFork, errno, path}
	}
	return &StartError{StepExec, errno, path}
}

// Resolve finds the program as a shell in dir with that environment would: a name with
// a slash is relative to dir, another one is looked for in PATH.
func Resolve(name string, env []string, dir string) (string, syscall.Errno) {
	if strings.Contains(name, "/") {
		return name, 0 // execve finds it, after chdir
	}
	return search(name, pathOf(env), dir)
}

// resolve is Resolve with the answers of the last moment; known means that it is one of
// those.
func (s *Starter) resolve(spec *Spec) (path string, known bool, errno syscall.Errno) {
	name := spec.Argv[0]
	if strings.Contains(name, "/") {
		return name, false, 0
	}
	key, now := lookup{name, pathOf(spec.Env), spec.Dir}, time.Now()
	if p, ok := s.found[key]; ok && now.Sub(p.at) < foundFor {
		return p.file, true, 0
	}
	if path, errno = search(name, key.path, key.dir); errno == 0 {
		if s.found == nil || len(s.found) >= maxFound {
			s.found = map[lookup]program{}
		}
		s.found[key] = program{path, now}
	}
	return path, false, errno
}

func pathOf(env []string) string {
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one counts, as in most shells
		}
	}
	return path
}

// search looks for a program in the directories of path.
func search(name, path, dir string) (string, syscall.Errno) {
	errno := syscall.ENOENT
	for d := range strings.SplitSeq(path, ":") {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		full := d + "/" + name
		var st unix.Stat_t
		if unix.Stat(full, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if unix.Faccessat(unix.AT_FDCWD, full, unix.X_OK, unix.AT_EACCESS) != nil {
			errno = syscall.EACCES
			continue
		}
		return full, 0
	}
	return "", errno
}

func errnoOf(err error) syscall.Errno {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e
	}
	return syscall.EIO
}

// SealFDs makes every descriptor from 3 up close-on-exec: what whoever started us left
// open by accident is none of our children's business.
func SealFDs() {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if fd, err := strconv.Atoi(n); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
