package main

import (
	"github.com/spf13/cobra"

	"launcher/internal/errs"
)

const runLong = `Run a command on the cluster. Its standard output and standard error are passed on
byte by byte, and its exit code is launcher's.

With --array or --each-line the command runs once per element, as many at a time as the
cluster has room for. An element has LAUNCHER_TASK_INDEX; with --each-line also its line
in LAUNCHER_LINE and in place of {} in the command. Lines of different elements never
mix. The exit code of an array is 0 when every element ended well, else that of the
first element to fail; "launcher tasks JOB --failed" lists them all.

With --nodes and --ranks-per-node the command runs as a gang: all ranks at once, with
torchrun's variables; when one fails the others are stopped.

With --as-ray a Python program written for Ray runs unchanged: launcher answers "import
ray" in it and in its workers, whether or not Ray is installed.

Ctrl-C sends SIGTERM, then SIGKILL after --grace, and exits 130; a second Ctrl-C kills at
once. Closing the terminal only detaches: "launcher attach JOB" joins the job again.`

func (a *app) cmdRun() *cobra.Command {
	f := &jobFlags{}
	c := &cobra.Command{
		Use:   "run [flags] -- CMD [ARG...]",
		Short: "run a command, an array of commands or a gang of ranks",
		Long:  runLong,
		Example: `  launcher run -- python train.py
  launcher run --array 0-999 -- sh -c 'echo $LAUNCHER_TASK_INDEX'
  launcher run --each-line files.txt -- gzip {}
  launcher run --as-ray -- python ray_program.py
  launcher run --on cluster.toml --gpus 1 -- python eval.py`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return errs.New(errs.Invalid, "launcher run: there is no command to run").Hint("usage: launcher %s", c.Use)
			}
			s, err := f.spec(args)
			if err != nil {
				return err
			}
			if err := f.shape(a, &s); err != nil {
				return err
			}
			if f.asRay {
				s.Env = append(s.Env, "LAUNCHER_AS_RAY=1")
			}
			return a.launch(c.Context(), launch{spec: s, detach: f.detach, on: f.on, style: styleOf(s)})
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	f.common(fs)
	fs.Uint32Var(&f.nodes, "nodes", 0, "run a gang on `N` nodes")
	fs.Uint32Var(&f.perNode, "ranks-per-node", 0, "`N` ranks of the gang on each node (default 1)")
	fs.StringVar(&f.array, "array", "", "`INDICES` to run, such as 0-99 or 0-9,20")
	fs.StringVar(&f.eachLine, "each-line", "", "`FILE` with one element per line, - for standard input")
	fs.IntVar(&f.retryFailed, "retry-failed", 0, "run a command that exits non-zero again up to `N` times; losses of nodes are free")
	fs.BoolVar(&f.exclusive, "exclusive-run", false, "never run in two places, not even when a node is silent")
	fs.BoolVar(&f.asRay, "as-ray", false, "launcher answers \"import ray\" in the command and its workers; docs/from-ray.md says what there is")
	return c
}

// later is the error for what the design has and this version does not.
func later(what string) error {
	return errs.New(errs.Unbuilt, "%s: not in this version", what)
}
