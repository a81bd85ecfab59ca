package supervisor

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/wire"
)

// oomRaise makes the kernel end user processes before anything of ours.
const oomRaise = 300

// server is the state of a supervisor: processes and descriptors, and the agent that
// is connected now.
type server struct {
	log     *slog.Logger
	config  []byte // given to each agent
	mark    string
	starter *proc.Starter // used by the thread that serves only
	null    int           // /dev/null

	mu       sync.Mutex
	procs    map[wire.Proc]*entry
	pids     map[int]*entry // not reaped
	fds      map[string]int
	agent    *sender         // nil between agents
	agentPID int             // 0 = none
	agentEnd chan proc.Ended // its end
	dying    bool            // nothing may be started any more
	born     chan struct{}   // tells the reaper that there is a child
	starting bool            // a process is being started, its pid not known yet
	known    *sync.Cond      // starting has become false
	stopping bool            // no agent may be started any more
	farewell string          // why all is over, by the agent
}

type entry struct {
	info   ProcInfo
	keep   []string // names of what is stored with it
	reaped bool
}

func newServer(log *slog.Logger, config []byte, mark string) (*server, error) {
	starter, err := proc.NewStarter()
	if err != nil {
		return nil, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "/dev/null")
	}
	s := &server{
		log: log, config: config, mark: mark, starter: starter, null: null,
		procs: map[wire.Proc]*entry{}, pids: map[int]*entry{}, fds: map[string]int{},
		born: make(chan struct{}, 1), agentEnd: make(chan proc.Ended, 1),
	}
	s.known = sync.NewCond(&s.mu)
	return s, nil
}

// serve hands everything over to the agent at the other end of fd and performs its
// orders until that end is closed. It closes fd.
func (s *server) serve(fd int, restarts uint32) {
	out := &sender{fd: fd}
	s.mu.Lock()
	h := handover{Config: s.config, Restarts: restarts, Mark: s.mark}
	for _, e := range s.procs {
		h.Procs = append(h.Procs, e.info)
	}
	names := make([]string, 0, len(s.fds))
	fds := make([]int, 0, len(s.fds))
	for n, f := range s.fds {
		names, fds = append(names, n), append(fds, f)
	}
	// From here on ends are sent as they come; all that were known before are in h.
	err := out.send(msgHandover, 0, h)
	for i := 0; i < len(names) && err == nil; i += fdBatch {
		j := min(i+fdBatch, len(names))
		err = out.send(msgFDs, 0, names[i:j], fds[i:j]...)
	}
	if err == nil {
		err = out.send(msgHanded, 0, struct{}{})
	}
	s.agent = out
	s.mu.Unlock()

	in := newReceiver(fd)
	for err == nil {
		var m message
		if m, err = in.next(); err == nil {
			err = s.handle(out, &m)
			m.closeFDs()
		}
	}
	s.mu.Lock()
	s.agent = nil
	s.mu.Unlock()
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	out.stop()
	_ = unix.Close(fd)
}

// fdBatch is how many descriptors go in one packet.
const fdBatch = 32

// handle performs one order. An error ends the connection: an agent that sends
// nonsense is broken, and a new one knows what to do.
func (s *server) handle(out *sender, m *message) error {
	switch m.typ {
	case msgSpawn:
		var o spawnOrder
		if err := wire.Unmarshal(m.body, &o); err != nil {
			return err
		}
		return out.send(msgReply, m.seq, s.spawn(&o, m))
	case msgSignal:
		var o signalOrder
		if err := wire.Unmarshal(m.body, &o); err != nil {
			return err
		}
		return out.send(msgReply, m.seq, s.signal(&o))
	case msgSweep:
		s.mu.Lock()
		r := s.strays()
		s.mu.Unlock()
		return out.send(msgReply, m.seq, r)
	case msgAck, msgRelease:
		var ps []wire.Proc
		if err := wire.Unmarshal(m.body, &ps); err != nil {
			return err
		}
		s.mu.Lock()
		for _, p := range ps {
			if e := s.procs[p]; e != nil && e.info.Exit != nil {
				delete(s.procs, p)
				if m.typ == msgRelease {
					s.drop(e.keep)
				}
			}
		}
		s.mu.Unlock()
	case msgStore:
		var names []string
		if err := wire.Unmarshal(m.body, &names); err != nil {
			return err
		}
		s.keep(names, m)
		return out.send(msgReply, m.seq, reply{})
	case msgDrop:
		var names []string
		if err := wire.Unmarshal(m.body, &names); err != nil {
			return err
		}
		s.mu.Lock()
		s.drop(names)
		s.mu.Unlock()
	case msgFarewell:
		var why string
		if err := wire.Unmarshal(m.body, &why); err != nil {
			return err
		}
		s.mu.Lock()
		s.farewell = "farewell: " + why
		s.mu.Unlock()
		return out.send(msgReply, m.seq, reply{})
	default:
		return errs.New(errs.Corrupt, "message type %d from the agent", m.typ)
	}
	return nil
}

// drop closes stored descriptors. mu is held.
func (s *server) drop(names []string) {
	for _, n := range names {
		if fd, ok := s.fds[n]; ok {
			_ = unix.Close(fd)
			delete(s.fds, n)
		}
	}
}

// keep takes the message's first descriptors into the store, under names.
func (s *server) keep(names []string, m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if len(m.fds) == 0 {
			return
		}
		if old, ok := s.fds[n]; ok {
			_ = unix.Close(old)
		}
		s.fds[n] = m.fds[0]
		m.fds = m.fds[1:]
	}
}

// spawn starts a process. The lock is not held while the kernel works, so the reaper
// waits with the end of a process that is not in the table yet.
func (s *server) spawn(o *spawnOrder, m *message) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.procs[o.Proc]; e != nil {
		return reply{PID: e.info.PID, Started: e.info.Started, Known: true}
	}
	if s.dying {
		return reply{Ending: true}
	}
	spec := proc.Spec{Argv: o.Argv, Env: s.marked(o.Env), Dir: o.Dir, CPUs: o.CPUs, Limits: o.Limits, OOM: oomRaise}
	given := m.fds
	for _, has := range o.Files {
		fd := s.null
		if has {
			if len(given) == 0 {
				return reply{Err: "descriptors are missing in the order"}
			}
			fd, given = given[0], given[1:]
		}
		spec.Files = append(spec.Files, fd)
	}
	if len(given) != len(o.Keep) {
		return reply{Err: "descriptors are missing in the order"}
	}
	s.starting = true
	s.mu.Unlock()
	pid, err := s.starter.Start(&spec)
	now := time.Now().UnixNano()
	s.mu.Lock()
	s.starting = false
	s.known.Broadcast()
	if err != nil {
		if pid > 0 { // it lives, but not as ordered: killed, and reaped as an orphan
			s.wakeReaper()
		}
		if se, ok := err.(*proc.StartError); ok {
			return reply{Step: string(se.Step), Errno: int(se.Errno), Path: se.Path}
		}
		return reply{Err: err.Error()}
	}
	e := &entry{info: ProcInfo{Proc: o.Proc, PID: pid, Started: now}, keep: o.Keep}
	s.procs[o.Proc], s.pids[pid] = e, e
	for i, n := range o.Keep {
		if old, ok := s.fds[n]; ok {
			_ = unix.Close(old)
		}
		s.fds[n] = given[i]
	}
	if len(o.Keep) > 0 { // those are ours now
		m.fds = m.fds[:len(m.fds)-len(o.Keep)]
	}
	s.wakeReaper()
	return reply{PID: pid, Started: now}
}

// marked is env with our mark, in place of an outer node's.
func (s *server) marked(env []string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, markVar+"=") {
			out = append(out, kv)
		}
	}
	return append(out, s.mark)
}

// signal sends a signal to a process, to its group, or to what it left behind.
func (s *server) signal(o *signalOrder) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.procs[o.Proc]
	switch {
	case s.dying:
		return reply{Ending: true}
	case e == nil:
		return reply{Errno: int(unix.ESRCH)}
	case !o.Group && e.reaped:
		return reply{Errno: int(unix.ESRCH)}
	case !o.Group:
		return errnoReply(unix.Kill(e.info.PID, unix.Signal(o.Sig)))
	case e.reaped:
		return s.sweep(e, unix.Signal(o.Sig))
	}
	// SIGKILL also goes to what left the group but not the tree; other signals are for
	// the group, as from a terminal.
	var below []proc.Stat
	if unix.Signal(o.Sig) == unix.SIGKILL {
		below = proc.Descendants(e.info.PID)
	}
	err := unix.Kill(-e.info.PID, unix.Signal(o.Sig))
	for _, d := range below {
		// Whatever group it was in: it may have left it between the two looks.
		if now, gone := proc.ReadStat(d.PID); gone == nil && now.Start == d.Start && now.State != 'Z' {
			_ = unix.Kill(d.PID, unix.SIGKILL)
		}
	}
	return errnoReply(err)
}

// sweep signals the leftovers of a process that has been reaped: what lives below us and
// is of its session or group, or carries its name in the environment. Its number may be
// another's by now, so it is not used to signal.
func (s *server) sweep(e *entry, sig unix.Signal) reply {
	name := procVar + "=" + e.info.Proc.String()
	n := s.signalOrphans(sig, func(d proc.Stat) verdict {
		if d.Session == e.info.PID || d.Group == e.info.PID || proc.HasMark(d.PID, name) {
			return signalIt
		}
		return passBy
	})
	if n == 0 {
		return reply{Errno: int(unix.ESRCH)}
	}
	return reply{}
}

// procVar is the environment variable that names the process of a job.
const procVar = "LAUNCHER_PROC"

// strays kills what ended processes have left behind, wherever it has hidden: all that
// carries the name of one that does not run. What carries no name is of an unknown one,
// and is killed when none runs.
func (s *server) strays() reply {
	running := map[string]bool{}
	for _, e := range s.pids {
		running[e.info.Proc.String()] = true
	}
	return reply{Count: s.signalOrphans(unix.SIGKILL, func(d proc.Stat) verdict {
		name, ok := proc.Variable(d.PID, procVar)
		switch {
		case ok && running[name]:
			return spareTree // below it may be a cluster of its own, with names of its own
		case ok || len(running) == 0:
			return signalIt
		}
		return passBy
	})}
}

// verdict on an orphan.
type verdict int

const (
	passBy verdict = iota
	signalIt
	spareTree // and everything below it
)

// signalOrphans signals what lives below us, but neither is the agent, nor a process of
// the table, nor lives below one of those. A kill is repeated until nothing new appears:
// a process may fork while we look.
func (s *server) signalOrphans(sig unix.Signal, pick func(proc.Stat) verdict) (count int) {
	seen := map[proc.Stat]bool{}
	for deadline := time.Now().Add(sweepBound); ; time.Sleep(time.Millisecond) {
		owned := map[int]bool{s.agentPID: true}
		found := 0
		for _, d := range proc.Descendants(os.Getpid()) { // parents come first
			if owned[d.Parent] || owned[d.PID] || s.pids[d.PID] != nil {
				owned[d.PID] = true
				continue
			}
			if d.State == 'Z' {
				continue
			}
			v := pick(d)
			owned[d.PID] = v == spareTree
			if v != signalIt || unix.Kill(d.PID, sig) != nil {
				continue
			}
			found++
			if id := (proc.Stat{PID: d.PID, Start: d.Start}); !seen[id] {
				seen[id] = true
				count++
			}
		}
		if found == 0 || sig != unix.SIGKILL || time.Now().After(deadline) {
			return count
		}
	}
}

// sweepBound is how long a kill of leftovers is repeated; meanwhile nothing is started.
const sweepBound = 200 * time.Millisecond

func errnoReply(err error) reply {
	if e, ok := err.(unix.Errno); ok {
		return reply{Errno: int(e)}
	}
	return reply{}
}

func (s *server) wakeReaper() {
	select {
	case s.born <- struct{}{}:
	default:
	}
}

// reap takes every ended child off the kernel's list, for ever. Ends that come together
// are told together.
func (s *server) reap() {
	var ends []Exit
	for {
		pid, ok := proc.AwaitAny()
		if !ok {
			<-s.born
			continue
		}
		ends = ends[:0]
		s.mu.Lock()
		for ok && len(ends) < maxEnds {
			for s.starting && s.pids[pid] == nil && pid != s.agentPID {
				s.known.Wait()
			}
			if x := s.ended(pid); x != nil {
				ends = append(ends, *x)
			}
			pid, ok = proc.EndedNow()
		}
		// Once all is being killed, an end is no news of the process: its agent, which dies
		// with it, must not tell anybody that the process failed.
		if s.agent != nil && len(ends) > 0 && !s.dying {
			if err := s.agent.send(msgExits, 0, ends); err != nil {
				s.log.Debug("the next agent will hear of an end", "proc", ends[0].Proc, "err", err)
			}
		}
		s.mu.Unlock()
	}
}

// maxEnds bounds how many ends are told together.
const maxEnds = 64

// ended records the end of one child. Until it is reaped here, under the lock, its pid
// cannot be given to another process; so nobody who holds the lock signals a stranger.
func (s *server) ended(pid int) *Exit {
	end, ok, _ := proc.Reap(pid)
	if !ok {
		return nil
	}
	if pid == s.agentPID {
		s.agentPID = 0
		s.agentEnd <- end
		return nil
	}
	e := s.pids[pid]
	if e == nil { // an orphan that came to us
		x := Exit{PID: pid, Ended: time.Now().UnixNano()}
		x.Code, x.Signal = end.Code()
		return &x
	}
	delete(s.pids, pid)
	e.reaped = true
	x := Exit{Proc: e.info.Proc, PID: pid, Started: e.info.Started, Ended: time.Now().UnixNano(),
		RSS: end.Usage.Maxrss << 10, User: end.Usage.Utime.Nano(), System: end.Usage.Stime.Nano(),
		Leftover: unix.Kill(-pid, 0) == nil}
	x.Code, x.Signal = end.Code()
	e.info.Exit = &x
	return &x
}
