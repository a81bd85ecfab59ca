package main

import (
	"bufio"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

// jobFlags are the flags of the commands that make a job on the command line.
type jobFlags struct {
	cpus, gpus      float64
	memory          string
	limit, request  string
	nodes, perNode  uint32
	array, eachLine string
	workdir         string
	outputs         []string
	env             []string
	keepEnv         []string
	name            string
	retryFailed     int
	grace           string
	priority        int
	limits          []string
	pool            string
	detach          bool
	exclusive       bool
	asRay           bool
	on              string
}

const defaultGrace = 10 * time.Second

// common adds the flags that every kind of job has.
func (f *jobFlags) common(fs *pflag.FlagSet) {
	fs.Float64Var(&f.cpus, "cpus", 1, "cores per process; 0.5 shares a core")
	fs.Float64Var(&f.gpus, "gpus", 0, "GPUs per process; 0.5 shares a GPU")
	fs.StringVar(&f.memory, "memory", "", "memory per process, a `SIZE` such as 2GiB")
	fs.StringVar(&f.limit, "time", "", "limit, a `DURATION` such as 30m: then SIGTERM, --grace, SIGKILL, exit code 124")
	fs.StringVar(&f.request, "time-request", "", "the `DURATION` that placement assumes (default: --time)")
	fs.StringVar(&f.workdir, "workdir", "", "`DIR` to run in (default: here)")
	fs.StringArrayVar(&f.outputs, "outputs", nil, "`GLOB` of files that come back from nodes that do not share the directory (repeatable)")
	fs.StringArrayVar(&f.env, "env", nil, "`KEY=VALUE` for the command, or KEY to pass on this shell's (repeatable)")
	fs.StringSliceVar(&f.keepEnv, "keep-env", nil, "keep the variables of launchers around us, a `LIST` of slurm, mpi, pbs, torch, or all")
	fs.StringVar(&f.name, "name", "", "`NAME` of the job (default: the command's)")
	fs.StringVar(&f.grace, "grace", "10s", "`DURATION` between SIGTERM and SIGKILL")
	fs.IntVar(&f.priority, "priority", 0, "higher goes first, with the tasks of its program; nothing that runs is ended for it")
	fs.StringArrayVar(&f.limits, "limit", nil, "the most that the job may use at a time in the whole cluster, with the tasks of its program, such as `cpu=8,gpu=1,memory=64GiB` (repeatable)")
	fs.StringVar(&f.pool, "pool", "", "run on nodes of this `POOL` only")
	fs.BoolVar(&f.detach, "detach", false, "print the job's number and return at once")
	fs.StringVar(&f.on, "on", "", "bring this cluster `SPEC` up for the job, and down after it if it was not up")
}

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// spec turns the common flags into the start of a job.
func (f *jobFlags) spec(command []string) (wire.JobSpec, error) {
	s := wire.JobSpec{Command: command, Priority: f.priority, Pool: f.pool, Outputs: f.outputs,
		Name: f.name, RetryFailed: f.retryFailed, Exclusive: f.exclusive, Ranks: 1}
	var err error
	if s.Dir, err = workdir(f.workdir); err != nil {
		return s, err
	}
	if s.Resources.CPU, err = configs.Amount(f.cpus); err != nil {
		return s, errs.Wrap(errs.Invalid, err, "--cpus")
	}
	if s.Resources.GPU, err = configs.Amount(f.gpus); err != nil {
		return s, errs.Wrap(errs.Invalid, err, "--gpus")
	}
	if f.memory != "" {
		if s.Resources.Memory, err = configs.ParseSize(f.memory); err != nil {
			return s, errs.Wrap(errs.Invalid, err, "--memory")
		}
	}
	if s.Limits, err = configs.ParseLimits(f.limits); err != nil {
		return s, errs.Wrap(errs.Invalid, err, "--limit")
	}
	for _, d := range []struct {
		flag, val string
		to        *int64
	}{{"--time", f.limit, &s.TimeLimit}, {"--time-request", f.request, &s.TimeRequest}, {"--grace", f.grace, &s.Grace}} {
		if d.val == "" {
			continue
		}
		v, err := configs.ParseDuration(d.val)
		if err != nil {
			return s, errs.Wrap(errs.Invalid, err, "%s", d.flag)
		}
		*d.to = int64(v)
	}
	if f.retryFailed < 0 {
		return s, errs.New(errs.Invalid, "--retry-failed %d: give 0 or more", f.retryFailed)
	}
	for _, o := range wire.Outer {
		if slices.Contains(f.keepEnv, "all") || slices.Contains(f.keepEnv, o.Name) {
			s.Keep = append(s.Keep, o.Name)
		}
	}
	for _, k := range f.keepEnv {
		if k != "all" && !slices.Contains(s.Keep, k) {
			return s, errs.New(errs.Invalid, "--keep-env %q: no launcher is known by that name", k).Hint("slurm keeps SLURM_*, all keeps everything; mpi, pbs and torch are the others")
		}
	}
	for _, kv := range f.env {
		k, v, has := strings.Cut(kv, "=")
		if !envKey.MatchString(k) {
			return s, errs.New(errs.Invalid, "--env %q: %q cannot be the name of a variable", kv, k).Hint("write --env KEY=VALUE, or --env KEY to pass this shell's value on")
		}
		if !has {
			if v, has = os.LookupEnv(k); !has {
				return s, errs.New(errs.Invalid, "--env %s: this shell has no such variable", k).Hint("write --env %s=VALUE", k)
			}
		}
		s.Env = append(s.Env, k+"="+v)
	}
	for _, g := range f.outputs {
		if _, err := filepath.Match(g, ""); err != nil || g == "" || filepath.IsAbs(g) || strings.HasPrefix(filepath.Clean(g), "..") {
			return s, errs.New(errs.Invalid, "--outputs %q is not a glob relative to the directory of the job", g)
		}
	}
	if s.Name == "" && len(command) > 0 {
		s.Name = filepath.Base(command[0])
	}
	return s, nil
}

// shape adds the gang or the array of `run`.
func (f *jobFlags) shape(a *app, s *wire.JobSpec) error {
	s.Kind = wire.KindRun
	array := f.array != "" || f.eachLine != ""
	switch {
	case f.array != "" && f.eachLine != "":
		return errs.New(errs.Invalid, "--array and --each-line exclude each other").Hint("--each-line makes an array of one element per line by itself")
	case f.nodes > 0 || f.perNode > 0:
		if array {
			return errs.New(errs.Invalid, "--nodes and --ranks-per-node are for one gang, --array and --each-line for many single processes")
		}
		n, p := max(f.nodes, 1), max(f.perNode, 1)
		if uint64(n)*uint64(p) > math.MaxInt32 {
			return errs.New(errs.Invalid, "--nodes %d times --ranks-per-node %d are too many ranks", n, p)
		}
		s.Nodes, s.RanksPerNode, s.Ranks = n, p, n*p
		if f.nodes == 0 {
			s.Nodes = 1
		}
	case f.array != "":
		r, err := configs.ParseRanges(f.array)
		if err != nil {
			return errs.Wrap(errs.Invalid, err, "--array")
		}
		s.Kind, s.Array = wire.KindArray, &wire.ArraySpec{Ranges: r}
	case f.eachLine != "":
		lines, err := a.readLines(f.eachLine)
		if err != nil {
			return err
		}
		s.Kind = wire.KindArray
		s.Array = &wire.ArraySpec{Ranges: []wire.Range{{From: 0, To: uint32(len(lines))}}, Lines: lines}
	}
	return nil
}

// maxLines bounds the text of an --each-line file: it travels in one frame.
const maxLines = 12 << 20

// readLines reads the elements of an array; "-" is standard input.
func (a *app) readLines(path string) ([]string, error) {
	r := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, errs.Wrap(errs.NotFound, err, "--each-line").Hint("- reads the lines from standard input")
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxLines+1))
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "--each-line %s", path)
	}
	if len(b) > maxLines {
		return nil, errs.New(errs.Exhausted, "--each-line %s: more than %s of lines", path, wire.Bytes(maxLines)).
			Hint("use --array and let the command read its own line: sed -n \"$((LAUNCHER_TASK_INDEX+1))p\" %s", path)
	}
	var lines []string
	sc := bufio.NewScanner(strings.NewReader(string(b)))
	sc.Buffer(nil, len(b)+1)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if len(lines) == 0 {
		return nil, errs.New(errs.Invalid, "--each-line %s: there is no line in it", path)
	}
	return lines, nil
}

// workdir makes the directory of a job absolute and checks it.
func workdir(dir string) (string, error) {
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return "", errs.Wrap(errs.NotFound, err, "this directory is gone").Hint("cd to one that is there, or use --workdir")
		}
		return wd, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "--workdir")
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", errs.Wrap(errs.NotFound, err, "--workdir")
	}
	if !st.IsDir() {
		return "", errs.New(errs.Invalid, "--workdir %s is not a directory", dir)
	}
	return abs, nil
}
