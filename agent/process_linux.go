package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// A process at somebody's terminal, or the other end of a copy of files. It is the agent's
// own child: it takes nothing of what the node hands out, and ends with whoever wanted it.

const (
	// processBound is how long a client may take to say what it wants.
	processBound = 30 * time.Second
	// lastWords is how long a process may go on when nobody is there any more, and how long
	// its output may stay open after its end.
	lastWords = 2 * time.Second
)

func (a *agent) serveProcess(ctx context.Context, st *session.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(processBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	var p wire.Process
	switch {
	case err != nil:
		return
	case typ != wire.MsgProcess:
		err = errs.New(errs.Corrupt, "the first message is %#x, where a process is due", typ)
	default:
		err = wire.Unmarshal(body, &p)
	}
	var s *shown
	if err == nil {
		s, err = a.startProcess(&p)
	}
	if err == nil {
		err = s.serve(ctx, st)
	}
	if no, ok := errors.AsType[*notStarted](err); ok { // as a shell has it
		err = st.WriteMsg(wire.MsgOK, struct{}{})
		if err == nil {
			err = st.WriteMsg(wire.MsgOutput, wire.Output{Err: true, Data: []byte("launcher: " + no.Error() + "\n")})
		}
		if err == nil {
			err = st.WriteMsg(wire.MsgExit, wire.Exit{Code: no.code})
		}
	}
	if err != nil {
		_ = st.WriteErr(err)
	}
	_ = st.CloseWrite()
}

// notStarted is a command that does not run.
type notStarted struct {
	code int32
	error
}

// shown is such a process.
type shown struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err io.ReadCloser // err is nil at a terminal
	tty      *os.File

	mu sync.Mutex // one message at a time
}

func (a *agent) startProcess(p *wire.Process) (*shown, error) {
	argv, env := p.Command, inherited(a.env.outer, nil)
	exe, err := os.Executable()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "the own binary")
	}
	env = append(env, a.cfg.Env...)
	for _, kv := range a.env.outer { // by it the node's end finds what is left
		if strings.HasPrefix(kv, "LAUNCHER_ALLOC=") {
			env = append(env, kv)
		}
	}
	env = append(env, "LAUNCHER="+exe)
	var c *exec.Cmd
	switch {
	case p.Own:
		c = exec.Command(exe, argv...)
	case len(argv) > 0:
		c = exec.Command(argv[0], argv[1:]...)
	default:
		sh := variable(env, "SHELL")
		if sh == "" {
			sh = "/bin/sh"
		}
		c = exec.Command(sh)
		c.Args[0] = "-" + filepath.Base(sh) // a login shell
	}
	if home := variable(env, "HOME"); home != "" {
		if fi, err := os.Stat(home); err == nil && fi.IsDir() {
			c.Dir = home
		}
	}
	s := &shown{cmd: c}
	// With the thread that starts it ends only the agent.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	var theirs []*os.File
	if p.TTY {
		env = append(env, "TERM="+p.Term)
		master, slave, err := terminal(p.Window)
		if err != nil {
			return nil, err
		}
		c.SysProcAttr.Setctty = true
		c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
		s.tty, s.in, s.out, theirs = master, master, master, []*os.File{slave}
	} else {
		in, err1 := c.StdinPipe()
		out, err2 := c.StdoutPipe()
		serr, err3 := c.StderrPipe()
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, errs.Wrap(errs.Exhausted, err, "pipes of a process")
		}
		s.in, s.out, s.err = in, out, serr
	}
	c.Env = env
	err = c.Start()
	for _, f := range theirs {
		_ = f.Close()
	}
	if err != nil {
		if s.tty != nil {
			_ = s.tty.Close()
		}
		code := int32(126)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			code = 127
		}
		return nil, &notStarted{code, err}
	}
	return s, nil
}

func variable(env []string, name string) (value string) {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}

// terminal makes a pair of a terminal's ends.
func terminal(w wire.Window) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		var n uint32
		err = onFD(master, func(fd int) error {
			if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
				return err
			}
			n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
			return err
		})
		if err == nil {
			slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			_ = master.Close()
		}
	}
	if err != nil {
		return nil, nil, errs.Wrap(errs.Exhausted, err, "there is no terminal to be had on the node")
	}
	_ = resize(master, w)
	return master, slave, nil
}

func resize(tty *os.File, w wire.Window) error {
	if w.Rows == 0 || w.Cols == 0 {
		return nil
	}
	return onFD(tty, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: w.Rows, Col: w.Cols})
	})
}

func onFD(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var bad error
	if err := raw.Control(func(fd uintptr) { bad = do(int(fd)) }); err != nil {
		return err
	}
	return bad
}

// serve carries what goes in and out until the process has ended.
func (s *shown) serve(ctx context.Context, st *session.Stream) error {
	ended := make(chan struct{})
	var outs sync.WaitGroup
	// Somebody who is gone takes the process along, whatever it waits for.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-st.Unwanted():
		case <-ctx.Done():
		case <-ended:
			return
		}
		_ = s.in.Close() // of a terminal: what is there is told that it is gone
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGHUP)
		select {
		case <-ended:
		case <-time.After(lastWords):
		}
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	}()
	if err := s.write(st, wire.MsgOK, struct{}{}); err == nil {
		go s.take(st)
	}
	outs.Go(func() { s.give(st, s.out, false) })
	if s.err != nil {
		outs.Go(func() { s.give(st, s.err, true) })
	}
	// All output first: its pipes are closed by Wait. Something that the process has left
	// may hold them open.
	drained := make(chan struct{})
	go func() { outs.Wait(); close(drained) }()
	state := make(chan *os.ProcessState, 1)
	go func() {
		ps, _ := s.cmd.Process.Wait()
		close(ended)
		state <- ps
	}()
	ps := <-state
	select {
	case <-drained:
	case <-time.After(lastWords):
	}
	_ = s.out.Close()
	if s.err != nil {
		_ = s.err.Close()
	}
	_ = s.in.Close()
	<-drained
	<-gone
	code := int32(-1)
	if ps != nil {
		code = int32(ps.ExitCode())
		if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int32(ws.Signal())
		}
	}
	return s.write(st, wire.MsgExit, wire.Exit{Code: code})
}

func (s *shown) write(st *session.Stream, typ uint16, v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.WriteMsg(typ, v)
}

// give passes output on.
func (s *shown) give(st *session.Stream, from io.Reader, isErr bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && s.write(st, wire.MsgOutput, wire.Output{Err: isErr, Data: buf[:n]}) != nil {
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if err != nil { // EIO is a terminal's end
			return
		}
	}
}

// take passes input on, until there is no more of it.
func (s *shown) take(st *session.Stream) {
	for {
		typ, body, err := st.ReadMsg()
		if err != nil {
			return
		}
		switch typ {
		case wire.MsgInput:
			var in wire.Input
			if wire.Unmarshal(body, &in) != nil {
				return
			}
			if len(in.Data) > 0 {
				_, _ = s.in.Write(in.Data) // a process may end without having read it
			} else if s.tty == nil {
				_ = s.in.Close()
			}
		case wire.MsgWindow:
			var w wire.Window
			if s.tty != nil && wire.Unmarshal(body, &w) == nil {
				_ = resize(s.tty, w)
			}
		}
	}
}
