package agent

import (
	"bytes"
	"context"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/session"
)

// A head that moves (wire/seat.go) is started here by the node's supervisor, in the
// foreground of the node as all else: it ends with the node, and outlives the agent.

const (
	seatDir = "head" // below the node's directory: what is of this seat only
	// readyBound is how long a head may take from being ready to be taken to come.
	readyBound = 30 * time.Second
	// againAfter is when a head whose supervisor was killed is started again.
	againAfter = 100 * time.Millisecond
)

// headProc names it to the supervisor; those of workers count from 1.
var headProc = wire.Proc{Try: wire.Try{Task: wire.Task{Index: math.MaxUint32}, Attempt: 1}}

// headSeat is the place for a head on this node.
type headSeat struct {
	a   *agent
	dir string

	mu   sync.Mutex
	used bool     // guarded by mu, as is listen
	at   *os.File // where it listens
}

func newHeadSeat(a *agent) *headSeat {
	s := &headSeat{a: a, dir: filepath.Join(a.cfg.Dir, seatDir), at: a.take(wire.KeptGiven)}
	for _, p := range a.super.List() {
		s.used = s.used || p.Proc == headProc
	}
	if !s.used { // the agent before was killed while it waited for a head
		s.clear()
	}
	return s
}

// serve takes the head, when it comes.
func (s *headSeat) serve(ctx context.Context, st *session.Stream) {
	if err := s.take(ctx, st); err != nil {
		s.a.log.Warn("the head is not taken", "err", err)
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		_ = st.WriteErr(err)
		_ = st.CloseWrite()
	}
}

func (s *headSeat) take(ctx context.Context, st *session.Stream) error {
	_ = st.SetDeadline(time.Now().Add(readyBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	if typ != wire.MsgHeadTake {
		return errs.New(errs.Corrupt, "a head begins with message %#x", typ)
	}
	var m wire.HeadTake
	if err := wire.Unmarshal(body, &m); err != nil {
		return err
	}
	c := m.Config
	ca, err := os.ReadFile(filepath.Join(c.State, "ca.crt"))
	if err != nil || !bytes.Equal(bytes.TrimSpace(ca), bytes.TrimSpace(s.a.cfg.CA)) || unix.Access(c.State, unix.W_OK) != nil {
		return errs.New(errs.Unavailable, "node %s does not see the state directory %s, or cannot write there", s.a.cfg.Node, c.State).
			Hint("the head moves only to nodes that share it: LAUNCHER_HOME")
	}
	s.mu.Lock()
	used := s.used
	s.used = true
	s.mu.Unlock()
	if used {
		return errs.New(errs.Exists, "node %s has a head already", s.a.cfg.Node)
	}
	taken := false
	defer func() {
		if !taken {
			s.clear()
		}
	}()
	addrs, err := s.prepare(ctx, c, st.LocalAddr())
	if err != nil {
		return err
	}
	if err := st.WriteMsg(wire.MsgHeadReady, wire.HeadReady{Addrs: addrs}); err != nil {
		return err
	}
	if typ, _, err = st.ReadMsg(); err != nil || typ != wire.MsgHeadGo {
		return errs.New(errs.Cancelled, "the head that was announced does not come")
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	taken = true
	s.a.log.Info("the head is here", "why", c.Why)
	_ = st.WriteMsg(wire.MsgOK, struct{}{})
	_ = st.CloseWrite()
	return nil
}

// prepare makes the place ready: whoever connects from now on waits for the head.
func (s *headSeat) prepare(ctx context.Context, c wire.HeadConfig, local net.Addr) ([]string, error) {
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, diskErr(err, "the directory of the head")
	}
	c.Dir = s.dir
	err := os.MkdirAll(s.dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "head.config"), wire.Marshal(c), 0o600)
	}
	if err == nil { // one log, wherever it is
		err = os.Symlink(filepath.Join(c.State, "head.log"), filepath.Join(s.dir, "head.log"))
	}
	if err != nil {
		return nil, diskErr(err, "the directory of the head")
	}
	l, err := openPort(ctx, s.a.cfg)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "the head's port")
	}
	s.mu.Lock()
	s.at = f
	s.mu.Unlock()
	s.a.storeFile(ctx, wire.KeptGiven, f)
	p := peers{}
	p.host, p.port, _ = net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(p.host); ip == nil || ip.IsUnspecified() {
		p.host = ""
	}
	return p.addrsFor(local), nil
}

// start has the head's supervisor started.
func (s *headSeat) start(ctx context.Context) error {
	var c wire.HeadConfig
	b, err := os.ReadFile(filepath.Join(s.dir, "head.config"))
	if err == nil {
		err = wire.Unmarshal(b, &c)
	}
	if err != nil {
		return errs.Wrap(errs.Corrupt, err, "the configuration of the head")
	}
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LAUNCHER") {
			env = append(env, kv)
		}
	}
	env = append(env, "LAUNCHER_HOME="+c.Home, "LAUNCHER_CLUSTER="+c.Name)
	s.mu.Lock()
	at := s.at
	s.mu.Unlock()
	_, err = s.a.super.Spawn(ctx, supervisor.Order{Proc: headProc, Argv: []string{s.a.o.Binary, "head-supervise", "--dir", s.dir}, Env: env, Dir: "/", Files: []*os.File{nil, nil, nil, at}})
	return err
}

// exited is told when the head's supervisor has ended: when the head has moved on, or
// nothing can help, the place is free; else it goes on with another.
func (s *headSeat) exited(ctx context.Context, x supervisor.Exit) {
	_ = s.a.super.Release(headProc)
	if x.Signal == 0 && (x.Code == supervisor.ExitDone || x.Code == supervisor.ExitFatal) {
		s.a.log.Info("the head is not here any more", "code", x.Code)
		s.clear()
		return
	}
	s.a.log.Warn("the head's supervisor was killed; starting it again", "code", x.Code, "signal", x.Signal)
	select {
	case <-ctx.Done():
		return
	case <-time.After(againAfter):
	}
	if err := s.start(ctx); err != nil && ctx.Err() == nil {
		s.a.log.Error("the head does not start", "err", err)
		s.clear()
	}
}

func (s *headSeat) clear() {
	_ = sockpath.Remove(filepath.Join(s.dir, "head.sock"))
	if err := os.RemoveAll(s.dir); err != nil {
		s.a.log.Warn("cannot remove what the head leaves behind", "err", err)
	}
	_ = s.a.super.DropFD(wire.KeptGiven)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != nil {
		_ = s.at.Close()
	}
	s.at, s.used = nil, false
}
