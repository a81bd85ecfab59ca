package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"launcher/agent"
	"launcher/agent/supervisor"
	"launcher/backends/all"
	"launcher/backends/slurm"
	sshdial "launcher/backends/ssh/dial"
	"launcher/backends/ssh/host"
	"launcher/broker"
	"launcher/head"
	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/jobs/run"
	"launcher/jobs/sweep"
	"launcher/jobs/train"
	"launcher/python"
	"launcher/wire"
	"launcher/wire/session"
)

// machines makes the state machine of each kind of job.
func machines() map[wire.Kind]core.Maker {
	return map[wire.Kind]core.Maker{wire.KindRun: run.New, wire.KindArray: run.New, wire.KindTrain: train.New, wire.KindSweep: sweep.New}
}

// nodeCommands are the processes that run on Linux only.
func (a *app) nodeCommands() []*cobra.Command {
	var dir string
	h := a.process("head", "a cluster's head", func(ctx context.Context) error { return a.headMain(ctx, dir) })
	h.Flags().StringVar(&dir, "dir", "", "state directory of the cluster")
	_ = h.MarkFlagRequired("dir")
	return []*cobra.Command{h, a.process("agent", "a node's agent", a.agentMain), cmdHost(), a.cmdSlurmNode(), a.cmdSlurmDeliver()}
}

// cmdHost is what the broker runs on a host of an ssh pool, over its connection.
func cmdHost() *cobra.Command {
	var root string
	var sum bool
	c := &cobra.Command{Use: "host", Short: "the broker's hand on a host", Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if sum {
			return host.Sum(os.Stdout)
		}
		exe, err := os.Executable()
		if err != nil {
			return errs.Wrap(errs.Internal, err, "the own binary")
		}
		s, err := host.NewServer(root, exe)
		if err != nil {
			return err
		}
		conn, err := host.Stdio()
		if err != nil {
			return err
		}
		return s.Serve(c.Context(), conn)
	}}
	c.Flags().StringVar(&root, "root", "", "the directory of everything of launcher's on this host")
	c.Flags().BoolVar(&sum, "sum", false, "print the checksum of the own binary and end")
	return c
}

// cmdSlurmNode is what a Slurm job starts on each of its nodes.
func (a *app) cmdSlurmNode() *cobra.Command {
	var file, socket string
	c := a.process("slurm-node", "a task of a Slurm job: guard of a node's supervisor", func(ctx context.Context) error {
		return slurm.Node(ctx, file, socket, os.Stderr, supervisor.GuardMain)
	})
	c.Flags().StringVar(&file, "from", "", "what the nodes of the job are started with")
	c.Flags().StringVar(&socket, "wait", "", "the socket that it is brought to")
	return c
}

// cmdSlurmDeliver is what the broker starts in a job whose nodes do not see its files.
func (a *app) cmdSlurmDeliver() *cobra.Command {
	var name string
	c := a.process("slurm-deliver", "brings a Slurm job's nodes what they wait for", func(ctx context.Context) error {
		return slurm.Deliver(ctx, name, a.in)
	})
	c.Flags().StringVar(&name, "name", "", "of the job")
	_ = c.MarkFlagRequired("name")
	return c
}

// followers is how many machines keep a copy of the journal of a head that is on a host.
const followers = 2

// headMain runs the head of the cluster in dir, below its supervisor.
func (a *app) headMain(ctx context.Context, dir string) error {
	log := logx.New(os.Stderr, slog.LevelInfo).With("part", "head")
	hc, err := readHeadConfig(dir)
	if err != nil {
		return fatal(err)
	}
	leave := make(chan struct{})
	ctx, stop := untilTold(ctx, hc, leave)
	defer stop()
	keeper, err := supervisor.Connect(ctx)
	if err != nil {
		return fatal(err)
	}
	defer keeper.Close()
	if hc.Away {
		o := head.Options{Dir: dir, Broker: broker.NewRemote(log), Machines: machines(), Keeper: keeper, Log: log, Followers: followers, Leave: leave}
		if hc.Roam == "" {
			return headEnd(head.Main(ctx, o))
		}
		if !seatIsOurs(ctx, hc) {
			return nil
		}
		o.Followers = 0 // the state directory stays, whatever becomes of the node
		if err = head.Main(ctx, o); errors.Is(err, head.ErrMoved) {
			return nil
		}
		return headEnd(err)
	}
	desk := broker.NewDesk(keeper.Restarts() == 0) // after a restart there is no up that waits
	b := broker.New(all.Backends(hc.Home, sshdial.Options{Asker: asker{desk}, Log: log}), log)
	defer b.Close()
	if hc.At != "" {
		return headEnd(broker.FrontMain(ctx, broker.FrontOptions{Config: hc, Broker: b, Desk: desk, Log: log, Version: session.BuildVersion()}))
	}
	o := head.Options{Dir: dir, Broker: b, Desk: desk, Machines: machines(), Keeper: &keptHere{Client: keeper}, Log: log}
	for {
		if _, moved := broker.ReadSeat(dir); !moved {
			if err := head.Main(ctx, o); !errors.Is(err, head.ErrMoved) {
				return headEnd(err)
			}
		}
		if hc, err = readHeadConfig(dir); err != nil {
			return fatal(err)
		}
		err := broker.AwayMain(ctx, broker.FrontOptions{Config: hc, Broker: b, Desk: desk, Log: log, Version: session.BuildVersion(), Keeper: o.Keeper})
		home, ok := errors.AsType[*broker.Home](err)
		if !ok {
			return headEnd(err)
		}
		o.Why, o.Doubted = home.Why, home.Doubted
	}
}

// seatIsOurs reports whether the head is to be on the node that hc names: one that died in
// its last breath here has moved. What another machine has written may take a moment to be
// seen.
func seatIsOurs(ctx context.Context, hc wire.HeadConfig) bool {
	for late := time.Now().Add(seatBound); ctx.Err() == nil; {
		if s, ok := broker.ReadSeat(hc.State); ok && s.Node == hc.Seat {
			return true
		}
		if time.Now().After(late) {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return false
}

const seatBound = 3 * time.Second

// untilTold gives the context of a head, which ends when that is told to end. One in an
// allocation leaves first, for which it has leaveBound.
func untilTold(ctx context.Context, hc wire.HeadConfig, leave chan<- struct{}) (context.Context, context.CancelFunc) {
	if !hc.Away || hc.Roam == "" {
		return signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	}
	ctx, cancel := context.WithCancel(ctx)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, os.Interrupt)
	go func() {
		select {
		case <-told:
			close(leave)
			time.AfterFunc(leaveBound, cancel)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(told); cancel() }
}

// leaveBound is less than the supervisor allows for an orderly end, and than Slurm does.
const leaveBound = 12 * time.Second

// keptHere also gives the descriptors that this very process has stored: the head and the
// front take turns in it.
type keptHere struct {
	*supervisor.Client
	mu  sync.Mutex
	own map[string]*os.File // guarded by mu
}

func (k *keptHere) StoreFD(ctx context.Context, name string, f *os.File) error {
	if err := k.Client.StoreFD(ctx, name, f); err != nil {
		return err
	}
	fd := -1
	raw, err := f.SyscallConn()
	if err == nil { // not f.Fd: that changes how all who have it wait for it
		_ = raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "keeping %s", name)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.own == nil {
		k.own = map[string]*os.File{}
	}
	k.own[name] = os.NewFile(uintptr(fd), name)
	return nil
}

func (k *keptHere) FDs() map[string]*os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := k.Client.FDs()
	maps.Copy(all, k.own)
	return all
}

// headEnd tells the supervisor what will not get better by starting again.
func headEnd(err error) error {
	switch errs.KindOf(err) {
	case errs.Fenced, errs.Corrupt, errs.Version, errs.Permission, errs.Lost:
		return fatal(err)
	}
	return err
}

// asker has the questions of ssh asked at a desk.
type asker struct{ *broker.Desk }

func (a asker) Sitting(ctx context.Context) (s sshdial.Sitting) {
	s.Number, s.Terminal, s.AcceptNew = a.Desk.Sitting(ctx)
	return s
}

// agentMain runs a node's agent, below its supervisor.
func (a *app) agentMain(ctx context.Context) error {
	log := logx.New(os.Stderr, slog.LevelInfo).With("part", "agent")
	err := agent.Main(ctx, agent.Options{Log: log, SDK: python.Extract})
	if agent.Fatal(err) {
		return fatal(err)
	}
	return err
}

// fatal ends a process of a cluster that must not be started again.
func fatal(err error) error {
	fmt.Fprint(os.Stderr, errs.Lines(err))
	return &exitError{code: supervisor.ExitFatal, side: sideLauncher}
}
