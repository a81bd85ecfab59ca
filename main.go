package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire/sdk"
)

// cancelled is the exit code of a program that was told to end.
const cancelled = 130

// Main makes this program a cluster program: it connects to a cluster, calls run, and
// ends the process with exit code 0, or with 1 and the error on standard error. run's
// context ends on Ctrl-C and SIGTERM; if that is why run fails, the exit code is 130.
//
// In a run, the cluster is the run's; else the one that is up on this machine
// (LAUNCHER_CLUSTER names one of several); else one is started for the life of the
// program. The workers of the program's tasks are the same program: there Main serves
// them and does not return. So do not do before Main what workers should not do.
func Main(run func(ctx context.Context) error) {
	if token := os.Getenv("LAUNCHER_WORKER"); token != "" {
		os.Exit(serve(token))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process
	err := drive(ctx, run)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		os.Exit(cancelled)
	}
	if err != nil {
		fmt.Fprint(os.Stderr, explain(err))
		os.Exit(1)
	}
	os.Exit(0)
}

// drive connects, runs, and disconnects.
func drive(ctx context.Context, run func(ctx context.Context) error) error {
	at, stop, err := findAgent(ctx)
	if err != nil {
		return err
	}
	defer stop()
	c, err := dialAgent(ctx, at)
	if err != nil {
		return err
	}
	if !theClient.CompareAndSwap(nil, c) {
		c.close()
		return errs.New(errs.Exists, "launcher.Main is running already")
	}
	defer func() {
		theClient.Store(nil)
		c.close()
	}()
	return run(ctx)
}

// dialAgent connects a driver to the agent at a socket.
func dialAgent(ctx context.Context, at string) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, joinBound)
	defer cancel()
	dial := func(ctx context.Context) (*net.UnixConn, error) { return sockpath.Dial(ctx, at) }
	conn, err := dial(ctx)
	if err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "no agent answers").Hint("the cluster may have been brought down")
	}
	h := greetingOf(sdk.KindDriver)
	h.Proc, h.Job = os.Getenv("LAUNCHER_PROC"), os.Getenv("LAUNCHER_JOB_ID")
	return newClient(ctx, conn, h, dial)
}

// greetingOf is what every process of the program says.
func greetingOf(kind int) sdk.Hello {
	h := sdk.Hello{Version: sdk.Version, Kind: kind, Language: "go", PID: os.Getpid(), Name: filepath.Base(os.Args[0])}
	h.Program, _ = os.Executable()
	h.Dir, _ = os.Getwd()
	return h
}

// close ends the conversation: the agent then cancels what this driver submitted and
// did not get.
func (c *client) close() {
	c.flushAll()
	c.mu.Lock()
	c.closing = true
	conn := c.conn
	c.mu.Unlock()
	close(c.stopped)
	if conn != nil {
		conn.Close()
	}
	c.reading.Wait()
}

// flushAll writes everything, and waits for that; not for ever.
func (c *client) flushAll() {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		c.flush()
		c.mu.Lock()
		done := c.out.written == c.out.end() || c.gone != nil
		c.mu.Unlock()
		if done {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// serve runs the tasks of a worker; it gives the exit code.
func serve(token string) int {
	ctx, cancel := context.WithTimeout(context.Background(), joinBound)
	defer cancel()
	file := os.NewFile(3, "agent")
	nc, err := net.FileConn(file)
	file.Close()
	conn, ok := nc.(*net.UnixConn)
	if err != nil || !ok {
		fmt.Fprintf(os.Stderr, "error: a worker without its socket: %v\nhint: LAUNCHER_WORKER is for the node's agent to set\n", err)
		return 125
	}
	at := os.Getenv("LAUNCHER_SOCKET")
	h := greetingOf(sdk.KindWorker)
	h.Token, h.Proc, h.Job = token, os.Getenv("LAUNCHER_PROC"), os.Getenv("LAUNCHER_JOB_ID")
	c, err := newClient(ctx, conn, h, func(ctx context.Context) (*net.UnixConn, error) { return sockpath.Dial(ctx, at) })
	if err != nil {
		fmt.Fprint(os.Stderr, explain(err))
		return 125
	}
	theClient.Store(c)
	debug.SetTraceback("all")
	c.worker.serve()
	return 0
}
