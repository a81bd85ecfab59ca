package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

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
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	log := logx.New(os.Stderr, slog.LevelInfo).With("part", "head")
	hc, err := readHeadConfig(dir)
	if err != nil {
		return fatal(err)
	}
	keeper, err := supervisor.Connect(ctx)
	if err != nil {
		return fatal(err)
	}
	defer keeper.Close()
	if hc.Away {
		err = head.Main(ctx, head.Options{Dir: dir, Broker: broker.NewRemote(log), Machines: machines(), Keeper: keeper, Log: log, Followers: followers})
		return headEnd(err)
	}
	desk := broker.NewDesk(keeper.Restarts() == 0) // after a restart there is no up that waits
	b := broker.New(all.Backends(hc.Home, sshdial.Options{Asker: asker{desk}, Log: log}), log)
	defer b.Close()
	if hc.At != "" {
		return headEnd(broker.FrontMain(ctx, broker.FrontOptions{Config: hc, Broker: b, Desk: desk, Log: log, Version: session.BuildVersion()}))
	}
	return headEnd(head.Main(ctx, head.Options{Dir: dir, Broker: b, Desk: desk, Machines: machines(), Keeper: keeper, Log: log}))
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
