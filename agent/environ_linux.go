package agent

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
)

// environment makes the environment of user processes. What is the same for all
// processes of a job is made once.
type environment struct {
	a     *agent
	outer []string // what the agent itself was started with
	sdk   func() string

	mu     sync.Mutex
	jobs   map[wire.JobID]*jobEnv   // guarded by mu
	setups map[string]*setupOutcome // by text; guarded by mu
}

// jobEnv is the part of the environment that all processes of a job share.
type jobEnv struct {
	spec *wire.Job
	vars []string
	at   map[string]int // where in vars a name is
	own  map[string]bool
}

// setupOutcome is the environment after a pool's setup lines, run once per node.
type setupOutcome struct {
	once sync.Once
	vars []string
	err  error
}

func newEnvironment(a *agent) *environment {
	e := &environment{a: a, outer: os.Environ(), jobs: map[wire.JobID]*jobEnv{}, setups: map[string]*setupOutcome{}}
	e.sdk = sync.OnceValue(func() string {
		if a.o.SDK == nil {
			return ""
		}
		dir, err := a.o.SDK(a.cfg.CacheDir)
		if err != nil {
			a.log.Error("programs do not get the Python SDK", "err", err)
		}
		return dir
	})
	return e
}

// asRayVar is set to 1 in the environment of programs whose `import ray` is answered by
// the SDK.
const asRayVar = "LAUNCHER_AS_RAY"

// sdkPath is where Python finds the SDK, and its package ray for programs that asked for it.
func (e *environment) sdkPath(asRay string) []string {
	sdk := e.sdk()
	if sdk == "" {
		return nil
	}
	if asRay == "1" {
		return []string{sdk, filepath.Join(sdk, "as-ray")}
	}
	return []string{sdk}
}

func (e *environment) forget(job wire.JobID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.jobs, job)
}

// of gives the environment of one process.
func (e *environment) of(ctx context.Context, s *core.Spawn, more []string) ([]string, error) {
	j, err := e.job(ctx, s.Job)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(j.vars), len(j.vars)+len(s.Env)+len(s.Soft)+len(more))
	copy(out, j.vars)
	set := func(kv string) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := j.at[name]; ok {
			out[i] = kv
		} else {
			out = append(out, kv)
		}
	}
	for _, kv := range s.Soft {
		if name, _, _ := strings.Cut(kv, "="); !j.own[name] {
			set(kv)
		}
	}
	for _, kv := range s.Env {
		set(kv)
	}
	for _, kv := range more {
		set(kv)
	}
	return out, nil
}

// job gives what the processes of a job share: the node's environment, what the pool's
// setup lines made of it, the pool's variables, the job's; python and the SDK in front.
func (e *environment) job(ctx context.Context, spec *wire.Job) (*jobEnv, error) {
	e.mu.Lock()
	j := e.jobs[spec.Job]
	e.mu.Unlock()
	if j != nil && j.spec == spec {
		return j, nil
	}
	base := inherited(e.outer, spec.Spec.KeepEnv)
	if len(spec.Setup) > 0 {
		var err error
		if base, err = e.setup(ctx, spec, base); err != nil {
			return nil, err
		}
	}
	j = &jobEnv{spec: spec, at: map[string]int{}, own: map[string]bool{}}
	add := func(kv string) {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return
		}
		if i, ok := j.at[name]; ok {
			j.vars[i] = kv
		} else {
			j.at[name] = len(j.vars)
			j.vars = append(j.vars, kv)
		}
	}
	for _, kv := range base {
		add(kv)
	}
	for _, kv := range append(slices.Clone(spec.PoolEnv), spec.Spec.Env...) {
		add(kv)
		name, _, _ := strings.Cut(kv, "=")
		j.own[name] = true
	}
	value := func(name, otherwise string) string {
		if i, ok := j.at[name]; ok {
			_, v, _ := strings.Cut(j.vars[i], "=")
			return v
		}
		return otherwise
	}
	front := func(name, dir, otherwise string) {
		v := value(name, otherwise)
		if v != "" {
			dir += ":" + v
		}
		add(name + "=" + dir)
	}
	if value("PATH", "") == "" {
		add("PATH=" + defaultPath)
	}
	if filepath.IsAbs(spec.Python) {
		if cmd := spec.Spec.Command; len(cmd) > 0 && (cmd[0] == "python" || cmd[0] == "python3") {
			// Without this another python would be found, and not be the one that was meant.
			if _, err := os.Stat(spec.Python); err != nil {
				return nil, errs.Wrap(errs.NotFound, err, "the pool's python").Hint("set python in the pool to an interpreter that its nodes have")
			}
		}
		front("PATH", filepath.Dir(spec.Python), defaultPath)
	}
	if path := e.sdkPath(value(asRayVar, "")); len(path) > 0 {
		front("PYTHONPATH", strings.Join(path, ":"), "")
	}
	e.mu.Lock()
	e.jobs[spec.Job] = j
	e.mu.Unlock()
	return j, nil
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// outerNames are variables of launchers around us. A program that finds them takes
// itself for a part of something that it is not.
var outerNames = []string{"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE",
	"GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

var outerPrefixes = []string{"SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "PBS_", "TORCHELASTIC_"}

// inherited is the node's environment without what an outer launcher set. The SDK and
// this program's own variables never pass.
func inherited(outer []string, keep bool) []string {
	var out []string
	for _, kv := range outer {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "LAUNCHER_") || name == "LAUNCHER" {
			continue
		}
		hidden := slices.Contains(outerNames, name) || slices.ContainsFunc(outerPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		if !hidden || keep {
			out = append(out, kv)
		}
	}
	return out
}

// setupBound is how long a pool's setup lines may take; modules on a busy file system
// are slow.
const setupBound = 5 * time.Minute

// setup runs the pool's setup lines in a login shell, once, and gives the environment
// that they leave.
func (e *environment) setup(ctx context.Context, spec *wire.Job, base []string) ([]string, error) {
	key := strings.Join(spec.Setup, "\n")
	if spec.Spec.KeepEnv {
		key += "\x00keep"
	}
	e.mu.Lock()
	s := e.setups[key]
	if s == nil {
		s = &setupOutcome{}
		e.setups[key] = s
	}
	e.mu.Unlock()
	s.once.Do(func() { s.vars, s.err = runSetup(ctx, spec.Setup, append(base, spec.PoolEnv...)) })
	if s.err != nil {
		e.mu.Lock()
		if e.setups[key] == s {
			delete(e.setups, key) // it may be put right
		}
		e.mu.Unlock()
		return nil, errs.Wrap(errs.Unknown, s.err, "node %s", e.a.cfg.Node)
	}
	return s.vars, nil
}

func runSetup(ctx context.Context, lines, env []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, setupBound)
	defer cancel()
	shell := "bash"
	if _, err := exec.LookPath(shell); err != nil {
		shell = "sh"
	}
	// The environment comes by a descriptor of its own: setup lines may print. The first
	// line that fails ends it and is named.
	var script strings.Builder
	for _, l := range lines {
		script.WriteString("LAUNCHER_SETUP_LINE=" + quote(l) + "\n" + l + " || { echo \"setup line failed: $LAUNCHER_SETUP_LINE\" >&2; exit 1; }\n")
	}
	script.WriteString("unset LAUNCHER_SETUP_LINE\nenv -0 >&3\n")
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errs.Wrap(errs.Exhausted, err, "running setup")
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, shell, "-l", "-c", script.String())
	cmd.Env, cmd.ExtraFiles, cmd.WaitDelay = env, []*os.File{w}, time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, errs.Wrap(errs.Unavailable, err, "running setup")
	}
	w.Close()
	var got bytes.Buffer
	_, _ = got.ReadFrom(r)
	if err := cmd.Wait(); err != nil {
		said := lastLines(out.String())
		if said != "" {
			said = ": " + said
		}
		return nil, errs.Wrap(errs.Invalid, err, "the pool's setup fails%s", said).
			Hint("try the lines of setup in a login shell on that node")
	}
	var vars []string
	for kv := range strings.SplitSeq(got.String(), "\x00") {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "_" && name != "SHLVL" && name != "PWD" && name != "OLDPWD" {
			vars = append(vars, kv)
		}
	}
	return vars, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// lastLines is the end of what a program printed, on one line.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
