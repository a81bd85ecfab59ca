package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// remote is a process on a node, seen from here.
type remote struct {
	st *session.Stream
	mu sync.Mutex
}

// start starts a process on a node; the client's connection carries it.
func (c *client) start(ctx context.Context, p wire.Process) (*remote, error) {
	st, err := c.open(ctx, wire.MsgProcess, p)
	if err != nil {
		return nil, err
	}
	var is struct{}
	if err := answer(st, &is); err != nil {
		_ = st.Close()
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Unavailable, "node %s: the connection was lost", p.Node)
		}
		return nil, err
	}
	return &remote{st: st}, nil
}

func (r *remote) Close() { _ = r.st.Close() }

func (r *remote) say(typ uint16, v any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.st.WriteMsg(typ, v)
}

// Write is for the process's standard input; CloseInput ends that.
func (r *remote) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += 1 << 20 {
		if err := r.say(wire.MsgInput, wire.Input{Data: b[at:min(at+1<<20, len(b))]}); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

func (r *remote) CloseInput() error { return r.say(wire.MsgInput, wire.Input{}) }

// wait passes output on until the process has ended, and gives its exit code.
func (r *remote) wait(out, err io.Writer) (int, error) {
	for {
		typ, body, rerr := r.st.ReadMsg()
		if rerr != nil {
			if rerr == io.EOF {
				rerr = io.ErrUnexpectedEOF
			}
			return 0, away(rerr)
		}
		switch typ {
		case wire.MsgError:
			var w wire.ErrorFrame
			if err := wire.Unmarshal(body, &w); err != nil {
				return 0, err
			}
			return 0, w.FromWire()
		case wire.MsgOutput:
			var o wire.Output
			if err := wire.Unmarshal(body, &o); err != nil {
				return 0, err
			}
			to := out
			if o.Err {
				to = err
			}
			if _, err := to.Write(o.Data); err != nil {
				return 0, errs.Wrap(errs.Exhausted, err, "writing what the node sends")
			}
		case wire.MsgExit:
			var e wire.Exit
			if err := wire.Unmarshal(body, &e); err != nil {
				return 0, err
			}
			return int(e.Code), nil
		}
	}
}

func (a *app) cmdSSH() *cobra.Command {
	c := &cobra.Command{
		Use:   "ssh NODE [-- CMD [ARG...]]",
		Short: "a terminal on a node",
		Long: `Open a shell on a node, of any pool, by the way that the cluster has to it: no other login is
made. With a command, that runs instead, at a terminal if there is one here. It takes nothing
of what the node hands out to work, and ends with this command.`,
		Example: `  launcher ssh gpu-0
  launcher ssh gpu-0 -- nvidia-smi`,
		Args: argCount(1, -1),
		RunE: func(c *cobra.Command, args []string) error {
			p := wire.Process{Node: wire.NodeID(args[0]), Command: args[1:], Term: os.Getenv("TERM")}
			if len(p.Command) > 0 && p.Command[0] == "--" {
				p.Command = p.Command[1:]
			}
			return a.terminal(c.Context(), p)
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

// terminal connects ours with a process on a node.
func (a *app) terminal(ctx context.Context, p wire.Process) error {
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	if p.TTY = isTerminal(os.Stdin) && isTerminal(os.Stdout); p.TTY {
		p.Window = windowOf(os.Stdout)
	}
	r, err := cl.start(ctx, p)
	if err != nil {
		return err
	}
	defer r.Close()
	restore := func() {}
	if p.TTY {
		was, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "this terminal")
		}
		restore = func() { _ = term.Restore(int(os.Stdin.Fd()), was) }
		defer restore()
		sized := make(chan os.Signal, 1)
		signal.Notify(sized, syscall.SIGWINCH)
		defer signal.Stop(sized)
		go func() {
			for range sized {
				_ = r.say(wire.MsgWindow, windowOf(os.Stdout))
			}
		}()
	}
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{r}, os.Stdin)
		_ = r.CloseInput()
	}()
	code, err := r.wait(os.Stdout, os.Stderr)
	restore()
	switch {
	case err != nil:
		return errs.Wrap(errs.Unknown, err, "node %s", p.Node)
	case code != 0:
		return &exitError{code: code, side: sideCommand}
	}
	return nil
}

func windowOf(f *os.File) (w wire.Window) {
	if cols, rows, err := term.GetSize(int(f.Fd())); err == nil {
		w.Rows, w.Cols = uint16(rows), uint16(cols)
	}
	return w
}
