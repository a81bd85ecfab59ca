package agent

import (
	"context"
	"io"
	"os"
	"slices"
	"time"

	"launcher/agent/core"
	"launcher/agent/detect"
	"launcher/internal/errs"
	"launcher/wire"
)

// detected is what this node has to give.
type detected struct {
	Total  wire.Resources
	CPUs   []int
	GPUs   []wire.GPU
	Lie    wire.Topology // how GPUs and cores lie to each other
	Host   string
	Python string
}

const (
	detectedName = "detected"
	maxDetected  = 1 << 20
	// gpuBound is how long nvidia-smi may take; on a sick machine it hangs.
	gpuBound = 20 * time.Second
)

// detect finds out what the node has. An agent that is started again takes what the one
// before it found: work is admitted by that, and asking programs takes time.
func (a *agent) detect(ctx context.Context) (d detected, err error) {
	if f := a.take(detectedName); f != nil {
		defer f.Close()
		b, err := io.ReadAll(io.NewSectionReader(f, 0, maxDetected))
		if err == nil && wire.Unmarshal(b, &d) == nil {
			return d, nil
		}
	}
	if d, err = a.look(ctx); err != nil {
		return d, err
	}
	a.keepDetected(ctx, d)
	return d, nil
}

// look asks the machine. What the spec says wins over what is found.
func (a *agent) look(ctx context.Context) (d detected, err error) {
	d.Host = detect.Hostname()
	cpu, err := detect.ReadCPU("/")
	if err != nil {
		return d, err
	}
	cpu = cpu.Limit(a.cfg.CPUs)
	if len(cpu.Cores) == 0 {
		return d, errs.New(errs.Invalid, "none of the cores %v that node %s was given can be used here", a.cfg.CPUs, a.cfg.Node)
	}
	memory, err := detect.ReadMemory("/")
	if err != nil {
		return d, err
	}
	d.CPUs = cpu.Cores
	d.Total = wire.Resources{CPU: cpu.Amount(), Memory: memory.Total}
	if a.cfg.Memory > 0 {
		d.Total.Memory = min(d.Total.Memory, a.cfg.Memory)
	}
	d.GPUs = a.findGPUs(ctx)
	d.Total.GPU = int64(len(d.GPUs)) * wire.Unit
	if r := a.cfg.Resources; r != nil {
		d.Total = override(d.Total, *r)
	}
	bound, cancel := context.WithTimeout(ctx, gpuBound)
	defer cancel()
	if d.Lie, err = detect.Topology(bound, "/", os.Environ(), d.GPUs); err != nil {
		a.log.Warn("how GPUs are linked cannot be told; they are chosen by number", "err", err)
	}
	return d, nil
}

const (
	// checkBound is how long a node waits with its greeting for what its pool wants to be
	// there; slow setup lines are told of later.
	checkBound = 10 * time.Second
	// checkEvery is how often what was wrong is looked at again.
	checkEvery = time.Minute
	// lookAfter is how long after its start a node looks for a python that nothing waits
	// for: version managers make that half a second of a core.
	lookAfter = time.Second
)

// check is the outcome of looking whether this node has what its pool says.
type check struct {
	python string
	why    string // what is wrong
}

// checkPool runs the pool's setup lines and asks its interpreter who it is. The tasks to
// come use the same run of the setup lines.
func (a *agent) checkPool(ctx context.Context) (c check) {
	env := os.Environ()
	if len(a.cfg.Setup) > 0 {
		vars, err := a.env.setup(ctx, &wire.Job{Setup: a.cfg.Setup, PoolEnv: a.cfg.Env}, inherited(a.env.outer, nil))
		if err != nil {
			c.why = err.Error()
			return c
		}
		env = vars
	}
	p, err := detect.FindPython(ctx, a.cfg.Python, env)
	switch {
	case err == nil:
		c.python = p.String()
	case a.cfg.Python != "":
		c.why = "the python of pool " + a.cfg.Pool + " cannot be used on node " + string(a.cfg.Node) + ": " + err.Error()
	default:
		a.log.Info("no python on this node", "err", err) // it takes commands
	}
	return c
}

// lacks is all that is odd about the node: what it was started with, and why.
func (a *agent) lacks(why string) string {
	if a.cfg.Note != "" && why != "" {
		return a.cfg.Note + "; " + why
	}
	return a.cfg.Note + why
}

// awaitCheck waits, for a while, for the outcome of checkPool, so that the node's greeting
// tells it and `up` can show it.
func (a *agent) awaitCheck(ctx context.Context) {
	late := time.NewTimer(checkBound)
	defer late.Stop()
	select {
	case c := <-a.checked:
		a.trouble = c.why
		a.checked <- c // for findPython
	case <-late.C:
	case <-ctx.Done():
	}
}

// findPython makes sure of what the pool says that its nodes have, unless an earlier agent
// has. It takes longer than all else at the start, so only what the pool names is waited
// for; the rest is for people.
func (a *agent) findPython(ctx context.Context, d detected) {
	if d.Python != "" && len(a.cfg.Setup) == 0 {
		return
	}
	if a.checked == nil { // what starts now has need of the cores
		select {
		case <-time.After(lookAfter):
		case <-ctx.Done():
			return
		}
	}
	told := ""
	for {
		var c check
		if a.checked != nil {
			select {
			case c = <-a.checked:
			case <-ctx.Done():
				return
			}
			a.checked = nil
		} else {
			c = a.checkPool(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if c.why != told {
			if told = c.why; told != "" {
				a.log.Error("the node lacks what its pool says", "why", told)
			}
			a.events.push(core.NodeTrouble{Why: a.lacks(told)})
		}
		if c.why == "" {
			if c.python != "" && c.python != d.Python {
				d.Python = c.python
				a.events.push(core.PythonFound{Python: d.Python})
				a.keepDetected(ctx, d)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		}
	}
}

func (a *agent) keepDetected(ctx context.Context, d detected) {
	if err := a.keepMemory(ctx, detectedName, wire.Marshal(d)); err != nil {
		a.log.Warn("what was detected is not kept over a restart", "err", err)
	}
}

// override puts the amounts that the spec names in the place of those found.
func override(found, spec wire.Resources) wire.Resources {
	if spec.CPU > 0 {
		found.CPU = spec.CPU
	}
	switch {
	case spec.GPU > 0:
		found.GPU = spec.GPU
	case spec.GPU < 0: // wire.NoGPUs
		found.GPU = 0
	}
	if spec.Memory > 0 {
		found.Memory = spec.Memory
	}
	found.Custom = spec.Custom
	return found
}

// findGPUs lists the GPUs of this node: its part of the machine's when several nodes
// divide it, those that the pool declares beyond what is found, and none where it wants
// none. What others use is busy only where the pool shares by yielding.
func (a *agent) findGPUs(ctx context.Context) []wire.GPU {
	ctx, cancel := context.WithTimeout(ctx, gpuBound)
	defer cancel()
	declared := int64(0)
	if a.cfg.Resources != nil {
		declared = a.cfg.Resources.GPU
	}
	if declared == wire.NoGPUs {
		return nil
	}
	all, err := detect.GPUs(ctx, "/", os.Environ())
	if err != nil {
		a.log.Warn("GPUs cannot be told; this node offers none but those that its pool declares", "err", err)
	}
	cfg := a.cfg
	if err != nil {
		cfg.GPUs = nil // what a broken driver cannot show does not work either
	}
	return declareGPUs(shareGPUs(all, cfg), cfg, int(declared/wire.Unit))
}

// markClaimed is GPUs with those that other clusters have locked marked as busy.
func (a *agent) markClaimed(found []wire.GPU) []wire.GPU {
	gpus := slices.Clone(found)
	for i := range gpus {
		if who, yes := a.claims.others(gpus[i].UUID); yes && !gpus[i].Busy {
			gpus[i].Busy, gpus[i].By = true, who
		}
	}
	return gpus
}

func shareGPUs(all []wire.GPU, cfg wire.NodeConfig) []wire.GPU {
	var out []wire.GPU
	for i, g := range all {
		if cfg.Slots > 1 && i%cfg.Slots != cfg.Slot {
			continue
		}
		if cfg.Share == "ignore" {
			g.Busy, g.By = false, ""
		}
		out = append(out, g)
	}
	return out
}

// declareGPUs adds those that a pool says its node has and that were not found, or that a
// batch system granted where none were: of makers whose driver is not asked. Nodes that divide
// a machine number them as they divide those that are found.
func declareGPUs(found []wire.GPU, cfg wire.NodeConfig, n int) []wire.GPU {
	if len(found) == 0 {
		var grant string
		for _, k := range []string{"SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURMD_NODENAME"} {
			grant += k + "=" + os.Getenv(k) + " "
		}
		for _, k := range cfg.GPUs {
			found = append(found, detect.DeclaredGPU("/", grant, k))
		}
	}
	for i := len(found); i < n; i++ {
		found = append(found, detect.DeclaredGPU("/", "", i*max(1, cfg.Slots)+cfg.Slot))
	}
	return found
}

const (
	// gpuEvery is how often GPUs are looked at for others' processes, claimEvery for others'
	// locks, which costs nothing, coresEvery for what others do with the cores.
	gpuEvery   = 30 * time.Second
	claimEvery = time.Second
	coresEvery = 5 * time.Second
	firstLooks = 4 // at the cores are a second apart, so that a busy machine is known as one soon
)

// yieldsCores reports whether cores that others keep busy are not offered: the pool shares
// by yielding, has not said itself how many cores there are, and no batch system has given
// this node its own.
func (a *agent) yieldsCores() bool {
	return a.cfg.Share == "yield" && (a.cfg.Resources == nil || a.cfg.Resources.CPU == 0) && os.Getenv("SLURM_JOB_ID") == ""
}

// watchOthers tells the core when others take GPUs and cores of the machine or give them
// back.
func (a *agent) watchOthers(ctx context.Context) {
	found := a.gpus
	if a.cfg.Share == "ignore" {
		found = nil
	}
	cores := a.yieldsCores()
	if len(found) == 0 && !cores {
		return
	}
	var told, now core.ResourcesChanged // the greeting may be out of date
	now.Total, now.GPUs = a.total, a.gpus
	others := detect.NewOthers("/")
	tick := time.NewTicker(claimEvery)
	defer tick.Stop()
	began := a.clock.Now()
	gpusAt, coresAt := began, began
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at := a.clock.Now()
		if len(found) > 0 {
			if at-gpusAt >= int64(gpuEvery) {
				gpusAt = at
				if got := a.findGPUs(ctx); ctx.Err() == nil && len(got) > 0 {
					found = got
				}
			}
			now.GPUs = a.markClaimed(found)
		}
		if cores && (at-coresAt >= int64(coresEvery) || at-began < firstLooks*int64(claimEvery)+int64(claimEvery)/2) {
			coresAt = at
			busy, on := others.Look(at)
			now.Others, now.Cores = a.yielded(busy), on
		}
		if a.claims.sawMiss() || now.Others != told.Others || !slices.Equal(now.Cores, told.Cores) && now.Others > 0 || !slices.Equal(now.GPUs, told.GPUs) {
			told = now
			a.events.push(now)
		}
	}
}

// yielded is what of this node's cores is left to others who keep so many of the machine's
// busy. Nodes that divide a machine divide that, too; one core is offered whatever happens,
// or a busy neighbour would stop the cluster.
func (a *agent) yielded(busy int) int64 {
	n := int64(busy) * wire.Unit / int64(max(1, a.cfg.Slots))
	return max(0, min(n, a.total.CPU-wire.Unit))
}
