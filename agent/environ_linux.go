package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	base := inherited(e.outer, spec.Spec.Keep)
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

// inherited is the node's environment without what outer launchers set, but for those to
// keep. The SDK and this program's own variables never pass.
func inherited(outer, keep []string) []string {
	var out []string
	for _, kv := range outer {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "LAUNCHER_") || name == "LAUNCHER" {
			continue
		}
		if of := wire.OuterOf(name); of == "" || slices.Contains(keep, of) {
			out = append(out, kv)
		}
	}
	return out
}
