package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

func (a *app) cmdSubmit() *cobra.Command {
	var on string
	c := &cobra.Command{
		Use:   "submit JOB.toml",
		Short: "hand a job file in; prints the job's number",
		Long: `Hand in a job file (run, array, train or sweep) and return; "launcher wait JOB" waits for
it and "launcher attach JOB" joins it. With --on SPEC, or "on" in the file, the cluster is
brought up for the job, the job is watched to its end, and the cluster brought down.`,
		Args: argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			j, err := configs.LoadJob(args[0])
			if err != nil {
				return err
			}
			return a.launchFile(c.Context(), j, on, true)
		},
	}
	c.Flags().StringVar(&on, "on", "", "bring this cluster SPEC up for the job, and down after it if it was not up")
	return c
}

// launchFile runs a job file; detach applies where no cluster has to be brought up for it.
func (a *app) launchFile(ctx context.Context, j *configs.Job, on string, detach bool) error {
	if on == "" {
		on = j.On
	}
	if a.cluster == "" {
		a.cluster = j.Cluster
	}
	s, err := j.Spec()
	if err != nil {
		return err
	}
	if err := checkScript(s); err != nil {
		return err
	}
	l := launch{spec: s, detach: detach && on == "", on: on, style: styleOf(s)}
	if s.Kind == wire.KindSweep {
		return a.launchSweep(ctx, l)
	}
	return a.launch(ctx, l)
}

func (a *app) cmdTrain() *cobra.Command {
	f := &jobFlags{}
	var workers string
	var t wire.TrainSpec
	var perNode uint32
	var torchrun bool
	c := &cobra.Command{
		Use:   "train -n WORKERS [flags] SCRIPT [ARG...]",
		Short: "run a training: a gang of ranks that restarts from its checkpoint",
		Long: `Run SCRIPT as a gang of ranks with torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, ...). A script ending in .py runs with the pool's Python. Each line of output
is marked with its [rank]. When a rank fails, the gang is restarted from its last
committed checkpoint, up to --max-restarts times. Or hand in a job file:
launcher train JOB.toml.`,
		Example: `  launcher train -n 4 examples/digits/train.py --epochs 10
  launcher train -n 8 --gpus 1 -- python -m pkg.train`,
		RunE: func(c *cobra.Command, args []string) error {
			if torchrun {
				return later("train --torchrun")
			}
			if len(args) == 0 {
				return errs.New(errs.Invalid, "launcher train: there is no script to run").Hint("usage: launcher %s", c.Use)
			}
			if workers == "" && len(args) == 1 && filepath.Ext(args[0]) == ".toml" {
				j, err := configs.LoadJob(args[0])
				if err != nil {
					return err
				}
				if j.Kind != wire.KindTrain {
					return errs.New(errs.Invalid, "%s is a job of kind %s, not a training", args[0], j.Kind).Hint("hand it in with: launcher submit %s", args[0])
				}
				return a.launchFile(c.Context(), j, f.on, f.detach)
			}
			n, err := parseWorkers(workers)
			if err != nil {
				return err
			}
			if perNode > 0 && n%perNode != 0 {
				return errs.New(errs.Invalid, "-n %d cannot be spread %d to a node", n, perNode).Hint("give a divisor of %d, or leave --per-node out", n)
			}
			cmd := args
			if strings.HasSuffix(args[0], ".py") {
				cmd = append([]string{"python3"}, args...) // not every machine has python
			}
			s, err := f.spec(cmd)
			if err != nil {
				return err
			}
			if f.name == "" {
				s.Name = strings.TrimSuffix(filepath.Base(args[0]), ".py")
			}
			t.Workers, t.MinWorkers = n, n
			if t.MaxRestarts < 0 || t.Keep < 1 {
				return errs.New(errs.Invalid, "--max-restarts must be 0 or more and --keep 1 or more")
			}
			if t.Score != "" && t.Score[0] != '-' && t.Score[0] != '+' {
				return errs.New(errs.Invalid, "--score %q is not a score", t.Score).Hint(`write "-loss" when less is better, "+accuracy" when more is`)
			}
			if t.Checkpoints != "" {
				if strings.Contains(t.Checkpoints, "://") {
					return later("checkpoints at a URL")
				}
				if t.Checkpoints, err = filepath.Abs(t.Checkpoints); err != nil {
					return errs.Wrap(errs.Invalid, err, "--checkpoints")
				}
			}
			s.Kind, s.Ranks, s.RanksPerNode, s.Train = wire.KindTrain, n, perNode, &t
			if err := checkScript(s); err != nil {
				return err
			}
			return a.launch(c.Context(), launch{spec: s, detach: f.detach, on: f.on, style: styleRanks})
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	f.common(fs)
	fs.StringVarP(&workers, "workers", "n", "", "number of ranks")
	fs.Uint32Var(&perNode, "per-node", 0, "ranks on each node (default: as many as fit)")
	fs.IntVar(&t.MaxRestarts, "max-restarts", configs.DefaultMaxRestarts, "restarts of the gang after a failure; losses of nodes are free")
	fs.StringVar(&t.Checkpoints, "checkpoints", "", "directory for checkpoints (default: the job's record)")
	fs.IntVar(&t.Keep, "keep", configs.DefaultKeep, "committed checkpoints to keep")
	fs.StringVar(&t.Score, "score", "", `keep the best too: "-loss" or "+accuracy"`)
	fs.BoolVar(&torchrun, "torchrun", false, "take torchrun's flags (not in this version)")
	return c
}

// checkScript refuses a training whose Python script is not there: every rank would fail
// at it, and again at each restart. Nodes run it in this very directory.
func checkScript(s wire.JobSpec) error {
	if s.Kind != wire.KindTrain || len(s.Command) < 2 || !strings.HasPrefix(filepath.Base(s.Command[0]), "python") || filepath.Ext(s.Command[1]) != ".py" {
		return nil
	}
	path := s.Command[1]
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Dir, path)
	}
	if st, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no script %s", path).Hint("scripts are looked for from the working directory, see --workdir")
	} else if err == nil && st.IsDir() {
		return errs.New(errs.Invalid, "the script %s is a directory", path)
	}
	return nil
}

// parseWorkers reads -n.
func parseWorkers(s string) (uint32, error) {
	if s == "" {
		return 0, errs.New(errs.Invalid, "launcher train: -n is missing").Hint("-n 4 runs four ranks")
	}
	if lo, hi, elastic := strings.Cut(s, ":"); elastic && lo != hi {
		return 0, later("an elastic training, -n " + s)
	} else if elastic {
		s = lo
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > 65536 {
		return 0, errs.New(errs.Invalid, "-n %s: not a number of ranks from 1 to 65536", s)
	}
	return uint32(n), nil
}
