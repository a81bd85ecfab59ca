package workers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/wire"
)

// template is a process that workers are forked from.
type template struct {
	p     *Pool
	key   string
	job   string
	name  string // of its socket at the supervisor
	spec  Spec   // whose environment, program and directory it has
	proc  wire.Proc
	sock  *packets
	ready chan struct{} // closed when sock is there or the start has failed

	mu     sync.Mutex
	err    error                  // it cannot be used; guarded by mu
	seq    uint64                 // guarded by mu
	orders map[uint64]chan answer // guarded by mu
	live   int                    // workers that it forked, which need its name; guarded by p.mu
	used   time.Time              // guarded by p.mu
	taken  bool                   // from an earlier agent, so live is not known
	said   tail                   // the end of what it printed
	heard  chan struct{}          // closed when all of that is read
}

// order and answer are the packets of docs/tasks.md section 6.
type order struct {
	ID   uint64            `json:"id"`
	Env  map[string]string `json:"env"`
	Dir  string            `json:"cwd"`
	Name string            `json:"name"`
	Seed uint64            `json:"seed"`
	CPUs []int             `json:"cpus"`
}

type answer struct {
	ID     uint64 `json:"id"`
	Ready  bool   `json:"ready"`
	PID    int    `json:"pid"`
	Error  string `json:"error"`
	Unsafe bool   `json:"unsafe"`
}

// keyOf tells templates apart.
func keyOf(s *Spec) string {
	h := sha256.New()
	for _, part := range append([]string{s.Program, s.Dir, s.Job}, s.Env...) {
		_, _ = io.WriteString(h, part+"\x00")
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// order has the worker forked, by a template that is there or is started now. mu is held.
func (p *Pool) order(s Spec) {
	t := p.template(s)
	t.live++
	p.wg.Go(func() { t.fork(s) })
}

// template gives the one for such workers, started if need be. mu is held.
func (p *Pool) template(s Spec) *template {
	key := keyOf(&s)
	t := p.templates[key]
	if t == nil || t.broken() {
		t = &template{p: p, key: key, job: s.Job, spec: s, proc: p.nextProc(), ready: make(chan struct{}), heard: make(chan struct{}), orders: map[uint64]chan answer{}}
		t.spec.ID, t.spec.Name, t.spec.Socket, t.spec.Set = 0, "", nil, nil
		t.name = strings.Join([]string{"template", key, strconv.FormatUint(uint64(t.proc.Index), 10), s.Job}, "\x00")
		p.templates[key], p.procs[t.proc] = t, t
		p.wg.Go(t.start)
	}
	t.used = time.Now()
	return t
}

func (t *template) broken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err != nil
}

// start starts the template's process.
func (t *template) start() {
	err := t.launch()
	if err != nil {
		t.fail(errs.Wrap(errs.Unknown, err, "workers cannot be started on node %s", t.p.c.Node))
	}
	close(t.ready)
}

func (t *template) launch() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "the socket of a template")
	}
	theirs := os.NewFile(uintptr(pair[1]), "template")
	defer theirs.Close()
	ours := newPackets(pair[0])
	outR, outW, err := os.Pipe()
	if err != nil {
		ours.Close()
		return errs.Wrap(errs.Exhausted, err, "the output of a template")
	}
	defer outW.Close()
	t.p.wg.Go(func() { t.listen(outR) })
	_, err = t.p.c.Super.Spawn(t.p.ctx, supervisor.Order{Proc: t.proc, Argv: []string{t.spec.Program, "-m", "launcher._template"}, Env: append(append([]string(nil), t.spec.Env...), procVar(t.proc)),
		Dir: t.spec.Dir, Files: []*os.File{nil, outW, outW, theirs}, Keep: map[string]*os.File{t.name: ours.f}})
	if err != nil {
		ours.Close()
		return err
	}
	t.sock = ours
	first := make(chan answer, 1)
	t.mu.Lock()
	err = t.err
	t.orders[0] = first
	t.mu.Unlock()
	if err != nil { // it has ended already
		return err
	}
	t.p.wg.Go(t.receive)
	select {
	case <-first:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.err
	case <-time.After(patience):
		return errs.New(errs.Timeout, "%s did not get ready within %s", t.spec.Program, patience)
	case <-t.p.ctx.Done():
		return errs.New(errs.Cancelled, "the agent ends")
	}
}

// listen keeps the end of what a template prints: it says why it does not start.
func (t *template) listen(r *os.File) {
	defer close(t.heard)
	defer r.Close()
	stop := context.AfterFunc(t.p.ctx, func() { _ = r.Close() })
	defer stop()
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		t.said.add(b[:n])
		if err != nil {
			return
		}
	}
}

// receive takes the template's answers.
func (t *template) receive() {
	b := make([]byte, 64<<10)
	for {
		n, err := t.sock.Read(b)
		if err != nil || n == 0 {
			t.fail(errs.New(errs.Lost, "the template of node %s that Python workers are forked from has ended%s", t.p.c.Node, t.lastWords()))
			return
		}
		var a answer
		if json.Unmarshal(b[:n], &a) != nil {
			continue // a child of the user's that got hold of the socket
		}
		t.mu.Lock()
		w := t.orders[a.ID]
		delete(t.orders, a.ID)
		t.mu.Unlock()
		if w != nil {
			w <- a
		} else if a.PID > 0 { // ordered by an agent that is dead, for nobody
			_ = unix.Kill(a.PID, unix.SIGKILL)
		}
	}
}

// fail makes the template unusable; whoever waits for it hears why.
func (t *template) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	waiting := t.orders
	t.orders = map[uint64]chan answer{}
	t.mu.Unlock()
	for _, w := range waiting {
		close(w)
	}
}

// fork has a worker forked.
func (t *template) fork(s Spec) {
	<-t.ready
	w, outs, err := t.try(&s)
	if err == errUnsafe {
		t.released()
		t.p.c.Log.Info("a template cannot fork safely; workers are started as fresh interpreters", "job", t.job)
		t.p.spawn(s, []string{s.Program, "-m", "launcher._worker"})
		return
	}
	s.Socket.Close()
	if err != nil {
		t.released()
		t.p.c.Failed(s.ID, err)
		return
	}
	w.from = t
	t.p.started(w, outs)
}

// released: a worker of it is gone.
func (t *template) released() {
	t.p.mu.Lock()
	t.live--
	t.p.mu.Unlock()
}

const (
	// unusedFor is how long a template without workers is kept.
	unusedFor   = time.Minute
	unusedEvery = 15 * time.Second
)

// tidy ends templates that nothing has been forked from for a while.
func (p *Pool) tidy() {
	t := time.NewTicker(unusedEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.mu.Lock()
			for key, t := range p.templates {
				if t.live == 0 && !t.taken && time.Since(t.used) > unusedFor {
					delete(p.templates, key)
					p.wg.Go(t.close)
				}
			}
			p.mu.Unlock()
		case <-p.ctx.Done():
			return
		}
	}
}

// errUnsafe: the template has threads.
var errUnsafe = errs.New(errs.Unavailable, "forking is not safe")

func (t *template) try(s *Spec) (*worker, *outputs, error) {
	outs, err := newOutputs()
	if err != nil {
		return nil, nil, err
	}
	defer outs.closeWrite()
	fail := func(err error) (*worker, *outputs, error) {
		outs.closeRead()
		return nil, nil, err
	}
	w := make(chan answer, 1)
	t.mu.Lock()
	if err := t.err; err != nil {
		t.mu.Unlock()
		return fail(err)
	}
	t.seq++
	o := order{ID: t.seq, Env: s.Set, Dir: s.Dir, Name: s.Name, Seed: rand.Uint64(), CPUs: s.CPUs}
	t.orders[o.ID] = w
	t.mu.Unlock()
	b, err := json.Marshal(o)
	if err == nil {
		err = t.sock.send(b, s.Socket, outs.outW, outs.errW)
	}
	if err != nil {
		return fail(errs.Wrap(errs.Lost, err, "ordering a worker of node %s", t.p.c.Node))
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case a, ok := <-w:
		switch {
		case !ok:
			t.mu.Lock()
			defer t.mu.Unlock()
			return fail(t.err)
		case a.Unsafe:
			return fail(errUnsafe)
		case a.Error != "" || a.PID <= 0:
			return fail(errs.New(errs.Unavailable, "a worker cannot be forked on node %s: %s", t.p.c.Node, a.Error))
		}
		return &worker{p: t.p, w: Worker{ID: s.ID, PID: a.PID, Job: s.Job, Name: s.Name}}, outs, nil
	case <-late.C:
		return fail(errs.New(errs.Timeout, "the template of node %s did not fork a worker within %s", t.p.c.Node, patience))
	case <-t.p.ctx.Done():
		return fail(errs.New(errs.Cancelled, "the agent ends"))
	}
}

// exited takes the end of the template's process.
func (t *template) exited(x supervisor.Exit) {
	t.p.mu.Lock()
	if t.p.templates[t.key] == t {
		delete(t.p.templates, t.key)
	}
	delete(t.p.procs, t.proc)
	t.p.mu.Unlock()
	_ = t.p.c.Super.Release(t.proc)
	t.p.goes(func() {
		t.fail(errs.New(errs.Lost, "the template of node %s that Python workers are forked from has ended (%s)%s", t.p.c.Node, End{true, x.Code, x.Signal}, t.lastWords()))
		t.close()
	})
}

// lastWords is the end of what an ended template printed; what lives on of it may hold
// the pipe.
func (t *template) lastWords() string {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-t.heard:
	case <-late.C:
	}
	return t.said.last()
}

// close drops the template: at the end of its socket it ends.
func (t *template) close() {
	<-t.ready
	t.fail(errs.New(errs.Cancelled, "the job is over"))
	if t.sock != nil {
		_ = t.sock.Close()
	}
	_ = t.p.c.Super.DropFD(t.name)
}

// takeTemplate takes up a template of an earlier agent. mu is held.
func (p *Pool) takeTemplate(name string, part []string, f *os.File) {
	n, _ := strconv.ParseUint(part[2], 10, 32)
	t := &template{p: p, key: part[1], name: name, job: part[3], proc: procOf(uint32(n)), taken: true, ready: make(chan struct{}), heard: make(chan struct{}), orders: map[uint64]chan answer{}}
	close(t.heard)
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		return
	}
	t.seq = uint64(p.c.Super.Restarts()) << 32 // its answers to earlier orders are nobody's
	t.sock = newPackets(fd)
	close(t.ready)
	p.templates[t.key], p.procs[t.proc] = t, t
	p.wg.Go(t.receive)
}

// tail is the end of what somebody printed.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 4 << 10

func (l *tail) add(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b = append(l.b, b...); len(l.b) > maxTail {
		l.b = bytes.Clone(l.b[len(l.b)-maxTail:])
	}
}

// last is the last lines on one line, for an error.
func (l *tail) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(l.b)), "\n")
	if s := strings.Join(lines[max(0, len(lines)-3):], "; "); s != "" {
		return ": " + s
	}
	return ""
}

// packets is a SEQPACKET socket under Go's poller.
type packets struct{ f *os.File }

func newPackets(fd int) *packets {
	_ = unix.SetNonblock(fd, true)
	return &packets{os.NewFile(uintptr(fd), "template")}
}

func (s *packets) Close() error { return s.f.Close() }

func (s *packets) Read(b []byte) (int, error) { return s.f.Read(b) }

// send sends one packet with descriptors.
func (s *packets) send(b []byte, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd()) // a program must not find its files non-blocking
	}
	defer runtime.KeepAlive(files)
	raw, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), b, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN
	})
	return errors.Join(err, sent)
}
