package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"launcher/agent/supervisor"
	"launcher/broker"
	"launcher/collectives/bench"
	"launcher/internal/errs"
	"launcher/internal/logx"
)

// hiddenCommands are the processes of a cluster. Backends and supervisors start them;
// each only calls the part that it is.
func (a *app) hiddenCommands() []*cobra.Command {
	var dir string
	withDir := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&dir, "dir", "", "state directory of the cluster")
		_ = c.MarkFlagRequired("dir")
		return c
	}
	return append(append(a.nodeCommands(), copyCommands()...), a.cmdLocal(), a.cmdBenchCoreGo(),
		a.process("node", "a node's first process: guard of its supervisor", func(ctx context.Context) error {
			return supervisor.GuardMain(ctx, a.in)
		}),
		a.process("bench-rank", "a rank of the collectives' benchmark", func(context.Context) error {
			return bench.Rank(a.in, a.out)
		}),
		a.process("supervise", "a node's supervisor", supervisor.Main),
		withDir(a.process("head-supervise", "the head's supervisor", func(ctx context.Context) error {
			err := supervisor.HeadMain(ctx, dir)
			if errs.Is(err, errs.Exists) {
				return exitWith(exitTaken, err)
			}
			return err
		})),
		withDir(a.process("link", "a client's connection on a machine that is no node", func(ctx context.Context) error {
			ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
			defer stop()
			return broker.LinkMain(ctx, broker.LinkOptions{Dir: dir, Ready: a.out, Log: logx.New(os.Stderr, slog.LevelInfo).With("part", "link")})
		})),
	)
}

// process makes a hidden command. Its errors go to standard error, which is its log.
func (a *app) process(name, short string, run func(context.Context) error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return run(c.Context())
	}}
}
