package host

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/session"
)

// A cluster's head may be on a host, too: its state directory is ROOT/hosts/HOST/ID/
// clusters/NAME, as that of a head here is below LAUNCHER_HOME, and its supervisor is
// detached like nodes are.

// headAsk begins every stream of kindHead.
type headAsk struct {
	ID, Cluster string
	Config      wire.HeadConfig // of a start
	Copy        bool            // of a start: its journal is the copy that is there
	TLS         bool            // of a connection: to its port, as nodes come, else to its socket
}

// States of a head on a host.
const (
	HeadRuns    = "runs"
	HeadDown    = "down"    // it has ended the cluster; its record waits to be fetched
	HeadStopped = "stopped" // its state is there and it does not run
	HeadNone    = "none"
)

// headIs answers a start: with HeadNone the state follows from the other side.
type headIs struct{ State string }

const (
	// headBound is how long a head may take until it answers, its journal replayed.
	headBound = 2 * time.Minute
	// headGone is how long its last processes may take to end.
	headGone = 30 * time.Second
)

func (s *Server) headDir(m headAsk) (string, error) {
	if !idRE.MatchString(m.ID) {
		return "", errs.New(errs.Invalid, "%q is no cluster's ID", m.ID)
	}
	return filepath.Join(s.dir(m.ID), "clusters", m.Cluster), checkNames(m.Cluster)
}

// head serves a stream about the head of a cluster.
func (s *Server) head(ctx context.Context, st *session.Stream, typ uint16, body []byte) error {
	var m headAsk
	if err := wire.Unmarshal(body, &m); err != nil {
		return err
	}
	dir, err := s.headDir(m)
	if err != nil {
		return err
	}
	_ = st.SetReadDeadline(time.Time{})
	switch typ {
	case msgHeadStart:
		return s.headStart(ctx, st, dir, m)
	case msgHeadJoin:
		conn, err := headConn(ctx, dir, m.TLS)
		if err != nil {
			return err
		}
		if err := st.WriteMsg(msgAnswer, struct{}{}); err != nil {
			conn.Close()
			return err
		}
		join(st.Session().Context(), st, conn)
		return nil
	case msgHeadFetch:
		if err := headIsGone(ctx, dir); err != nil {
			return err
		}
		if err := st.WriteMsg(msgAnswer, struct{}{}); err != nil {
			return err
		}
		if err := Pack(dir, st, downDone); err != nil {
			_ = st.CloseWith(err)
		}
		return nil
	case msgHeadDrop:
		if err := headIsGone(ctx, dir); err != nil {
			return err
		}
		if err := s.dropHead(dir, m.ID); err != nil {
			return err
		}
		return st.WriteMsg(msgAnswer, struct{}{})
	case msgHeadSeen:
		return st.WriteMsg(msgAnswer, seen(ctx, dir))
	case msgHeadGhost:
		if err := s.endGhost(ctx, dir, m); err != nil {
			return err
		}
		return st.WriteMsg(msgAnswer, struct{}{})
	}
	return errs.New(errs.Invalid, "there is no message of type %d about heads", typ)
}

// dropHead removes the state of a head that does not run.
func (s *Server) dropHead(dir, id string) error {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if e.Name() == "nodes" { // a node's that is not quite gone
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return errs.Wrap(errs.Permission, err, "the state of a head")
		}
	}
	_ = os.Remove(dir)
	s.prune(id)
	return nil
}

func headState(ctx context.Context, dir string) string {
	if c, err := sockpath.Dial(ctx, filepath.Join(dir, "head.sock")); err == nil {
		_ = c.Close()
		return HeadRuns
	}
	for _, f := range []struct{ name, state string }{{downDone, HeadDown}, {"head.config", HeadStopped}} {
		if _, err := os.Stat(filepath.Join(dir, f.name)); err == nil {
			return f.state
		}
	}
	return HeadNone
}

// headStart has the head of a cluster run unless it does, or is down.
func (s *Server) headStart(ctx context.Context, st *session.Stream, dir string, m headAsk) error {
	if err := s.endGhost(ctx, dir, m); err != nil {
		return err
	}
	is := headIs{headState(ctx, dir)}
	if err := st.WriteMsg(msgAnswer, is); err != nil {
		return err
	}
	switch is.State {
	case HeadNone:
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return errs.Wrap(errs.Permission, err, "the state of a head")
		}
		if err := Unpack(dir, st); err != nil {
			return err
		}
		if m.Copy {
			if err := installCopy(dir); err != nil {
				return err
			}
		}
	case HeadRuns, HeadDown:
		return st.WriteMsg(msgAnswer, struct{}{})
	}
	c := m.Config
	c.Name, c.Dir, c.Home, c.Binary, c.At, c.Away = m.Cluster, dir, s.dir(m.ID), s.binary, "", true
	tmp := filepath.Join(dir, "head.config.new")
	err := os.WriteFile(tmp, wire.Marshal(c), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, "head.config"))
	}
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the state of a head")
	}
	if err := s.startHead(ctx, dir, c); err != nil {
		return err
	}
	return st.WriteMsg(msgAnswer, struct{}{})
}

// startHead starts the head's supervisor, detached, and waits until the head answers.
func (s *Server) startHead(ctx context.Context, dir string, c wire.HeadConfig) error {
	ctx, cancel := context.WithTimeout(ctx, headBound)
	defer cancel()
	log, err := os.OpenFile(filepath.Join(dir, "head.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the log of a head")
	}
	defer log.Close()
	cmd := exec.Command(s.binary, "head-supervise", "--dir", dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LAUNCHER") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "LAUNCHER_HOME="+c.Home, "LAUNCHER_CLUSTER="+c.Name)
	if err := cmd.Start(); err != nil {
		return errs.Wrap(errs.Internal, err, "the head does not start")
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	for headState(ctx, dir) != HeadRuns {
		select {
		case <-ended:
			if headState(ctx, dir) == HeadDown {
				return nil // it ended what it had been told to end
			}
			return errs.New(errs.Internal, "the head did not start: %s", strings.TrimSpace(tail(filepath.Join(dir, "head.log"))))
		case <-ctx.Done():
			return errs.New(errs.Timeout, "the head does not answer")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// headConn connects to a head of this host.
func headConn(ctx context.Context, dir string, tls bool) (net.Conn, error) {
	if !tls {
		c, err := sockpath.Dial(ctx, filepath.Join(dir, "head.sock"))
		if err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the head")
		}
		return c, nil
	}
	var f wire.ClusterFile
	data, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	for _, a := range f.Addrs {
		var c net.Conn
		if c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", a); err == nil {
			return c, nil
		}
	}
	return nil, errs.Wrap(errs.Unavailable, err, "the head's port")
}

// headIsGone waits for the end of the processes of a head that is down.
func headIsGone(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, headGone)
	defer cancel()
	for {
		if headState(ctx, dir) != HeadRuns {
			f, err := os.Open(filepath.Join(dir, "head.lock"))
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil { // the supervisor's, to its end
				err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
				_ = f.Close()
			}
			if err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "the head of the cluster still runs")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
