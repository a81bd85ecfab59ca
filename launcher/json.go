package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/wire"
)

// jsonVersion is the version of every shape below. Fields are only ever added; a change
// of meaning raises the version.
const jsonVersion = 1

// doc is one JSON document: {"version":1, ...}. Commands that stream print one document
// a line.
type doc map[string]any

func (a *app) printJSON(d doc) {
	d["version"] = jsonVersion
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(d); err != nil {
		fmt.Fprintf(a.err, "error: cannot print as JSON: %v\n", err)
		return
	}
	a.screen.write(a.out, b.Bytes())
}

type jsonError struct {
	Kind    string      `json:"kind"`
	Message string      `json:"message"`
	Hints   []string    `json:"hints"`
	Faults  []jsonFault `json:"faults,omitempty"` // of a file, one each
}

type jsonFault struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Key     string `json:"key"`
	Message string `json:"message"`
}

type jsonExit struct {
	Code int    `json:"code"`
	Side string `json:"side"` // command | launcher
}

func toJSONError(err error) jsonError {
	h := errs.HintsOf(err)
	if h == nil {
		h = []string{}
	}
	j := jsonError{Kind: errs.KindOf(err).String(), Message: err.Error(), Hints: h}
	if faults, ok := errors.AsType[configs.Faults](err); ok {
		j.Faults = mapAll(faults, func(f configs.Fault) jsonFault { return jsonFault{f.File, f.Line, f.Key, f.Msg} })
	}
	return j
}

func errorDoc(err error, code int, side string) doc {
	return doc{"error": toJSONError(err), "exit": jsonExit{code, side}}
}

type jsonResources struct {
	CPU    float64            `json:"cpu"`
	GPU    float64            `json:"gpu"`
	Memory int64              `json:"memory"`
	Custom map[string]float64 `json:"custom,omitempty"`
}

// jsonUse is what a job (its number), or a program that no job started, has of a cluster.
type jsonUse struct {
	Job  string        `json:"job"`
	Uses jsonResources `json:"uses"`
}

func toJSONUse(u wire.JobUse) jsonUse {
	return jsonUse{Job: u.Job, Uses: toJSONResources(u.Tasks.Add(u.Own, 1))}
}

func toJSONResources(r wire.Resources) jsonResources {
	j := jsonResources{CPU: float64(r.CPU) / wire.Unit, GPU: float64(r.GPU) / wire.Unit, Memory: r.Memory}
	for k, v := range r.Custom {
		if j.Custom == nil {
			j.Custom = map[string]float64{}
		}
		j.Custom[k] = float64(v) / wire.Unit
	}
	return j
}

type jsonJob struct {
	ID        uint32              `json:"id"`
	Name      string              `json:"name"`
	Kind      string              `json:"kind"`
	State     string              `json:"state"`
	Tasks     uint32              `json:"tasks"`
	Waiting   uint32              `json:"waiting"`
	Running   uint32              `json:"running"`
	Done      uint32              `json:"done"`
	Failed    uint32              `json:"failed"`
	Cancelled uint32              `json:"cancelled"`
	Lost      uint32              `json:"lost_attempts"`
	Restarts  uint32              `json:"restarts"`
	ExitCode  *int32              `json:"exit_code"`
	Cause     string              `json:"cause,omitempty"`
	Command   []string            `json:"command"`
	Dir       string              `json:"dir"`
	Submitted *string             `json:"submitted"`
	Started   *string             `json:"started"`
	Ended     *string             `json:"ended"`
	Uses      jsonResources       `json:"uses"`
	Step      int64               `json:"step,omitempty"`
	Metrics   map[string]number64 `json:"metrics,omitempty"`
	Best      *jsonTrial          `json:"best,omitempty"`
	Outputs   *jsonOutputs        `json:"outputs,omitempty"`
}

type jsonOutputs struct {
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Waiting int      `json:"waiting_tasks"`
	At      string   `json:"at,omitempty"`
	Why     string   `json:"why,omitempty"`
	Failed  []string `json:"failed,omitempty"`
}

// number64 is a float that may be NaN or infinite, which JSON has no numbers for: those
// are the strings "NaN", "Infinity" and "-Infinity".
type number64 float64

func (n number64) MarshalJSON() ([]byte, error) {
	f := float64(n)
	switch {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	}
	return json.Marshal(f)
}

func toJSONJob(j wire.JobInfo) jsonJob {
	o := jsonJob{ID: uint32(j.ID), Name: j.Name, Kind: string(j.Kind), State: j.State.String(), Tasks: j.Tasks,
		Waiting: j.Waiting, Running: j.Running, Done: j.Done, Failed: j.Failed, Cancelled: j.Cancelled, Lost: j.Lost,
		Restarts: j.Restarts, Cause: j.Cause, Command: j.Command, Dir: j.Dir,
		Submitted: stamp(j.Submitted), Started: stamp(j.Started), Ended: stamp(j.Ended), Step: j.Step, Uses: toJSONResources(j.Uses)}
	if j.State.Terminal() {
		o.ExitCode = new(j.ExitCode)
	}
	for k, v := range j.Metrics {
		if o.Metrics == nil {
			o.Metrics = map[string]number64{}
		}
		o.Metrics[k] = number64(v)
	}
	if j.Best != nil {
		o.Best = new(toJSONTrial(*j.Best))
	}
	if j.Outputs != nil {
		o.Outputs = new(jsonOutputs(*j.Outputs))
	}
	return o
}

type jsonTrial struct {
	Index   uint32         `json:"index"`
	State   string         `json:"state"`
	Params  map[string]any `json:"params"`
	Metric  *number64      `json:"metric"` // newest
	Best    *number64      `json:"best"`
	Step    int64          `json:"step"`
	Pruned  bool           `json:"pruned"`
	Code    *int32         `json:"exit_code"`
	Started *string        `json:"started"`
	Ended   *string        `json:"ended"`
}

func toJSONTrial(t wire.Trial) jsonTrial {
	o := jsonTrial{Index: t.Index, State: t.State.String(), Params: t.Params, Step: t.Step, Pruned: t.Pruned,
		Started: stamp(t.Started), Ended: stamp(t.Ended)}
	if t.Metric != nil {
		o.Metric = new(number64(*t.Metric))
	}
	if t.Best != nil {
		o.Best = new(number64(*t.Best))
	}
	if t.State.Terminal() {
		o.Code = new(t.Code)
	}
	return o
}

type jsonRank struct {
	Rank  uint32 `json:"rank"`
	Node  string `json:"node"`
	State string `json:"state"`
	Code  int32  `json:"exit_code"`
}

type jsonTask struct {
	Task     string          `json:"task"`
	Attempt  uint32          `json:"attempt"`
	State    string          `json:"state"`
	Node     string          `json:"node,omitempty"`
	ExitCode *int32          `json:"exit_code"`
	Reason   string          `json:"reason,omitempty"`
	Cause    string          `json:"cause,omitempty"`
	Started  *string         `json:"started"`
	Ended    *string         `json:"ended"`
	Line     string          `json:"line,omitempty"`
	Params   json.RawMessage `json:"params,omitempty"`
	Ranks    []jsonRank      `json:"ranks,omitempty"`
}

func toJSONTask(t wire.TaskInfo) jsonTask {
	o := jsonTask{Task: t.Task.String(), Attempt: uint32(t.Attempt), State: t.State.String(), Node: string(t.Node),
		Reason: reasonName(t.Reason), Cause: t.Cause, Started: stamp(t.Started), Ended: stamp(t.Ended), Line: t.Line}
	if t.State.Terminal() {
		o.ExitCode = new(t.ExitCode)
	}
	if json.Valid([]byte(t.Params)) {
		o.Params = json.RawMessage(t.Params)
	}
	for _, r := range t.Ranks {
		o.Ranks = append(o.Ranks, jsonRank{r.Rank, string(r.Node), r.State.String(), r.Code})
	}
	return o
}

// reasonName is the stable name of why launcher ended a process, "" when it did not.
func reasonName(r wire.Reason) string {
	names := [...]string{"", "cancelled", "time-limit", "peer", "pruned", "lost", "preempted", "memory", "fenced", "shutdown"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("reason-%d", r)
}

type jsonGPU struct {
	UUID   string `json:"uuid"`
	Name   string `json:"name"`
	Memory int64  `json:"memory"`
	Busy   bool   `json:"busy"`
	Index  int32  `json:"index"`
	// Declared: the pool says that it is there, the driver does not show it.
	Declared bool   `json:"declared,omitempty"`
	By       string `json:"by,omitempty"` // with busy: who has it
}

// jsonTopology is how a node's GPUs and cores lie to each other. Links are nvidia-smi's
// names, for each GPU of gpus a row.
type jsonTopology struct {
	Text  string     `json:"text"`
	Links [][]string `json:"links,omitempty"`
	NUMA  []jsonNUMA `json:"numa,omitempty"`
}

type jsonNUMA struct {
	Node int32    `json:"node"`
	CPUs []int    `json:"cpus"`
	GPUs []string `json:"gpus"`
}

func toJSONTopology(t wire.Topology) *jsonTopology {
	if !t.Known() {
		return nil
	}
	o := &jsonTopology{Text: t.String()}
	for i, g := range t.GPUs {
		if len(g.Links) == 0 {
			continue
		}
		row := mapAll(g.Links, wire.Link.String)
		if i < len(row) {
			row[i] = "X"
		}
		o.Links = append(o.Links, row)
	}
	for _, n := range t.NUMA {
		x := jsonNUMA{Node: n.ID, CPUs: n.CPUs, GPUs: []string{}}
		for _, g := range t.GPUs {
			if g.NUMA == n.ID {
				x.GPUs = append(x.GPUs, g.UUID)
			}
		}
		o.NUMA = append(o.NUMA, x)
	}
	return o
}

type jsonNode struct {
	ID       string        `json:"id"`
	Pool     string        `json:"pool"`
	Host     string        `json:"host"`
	Addr     string        `json:"addr"`
	State    string        `json:"state"`
	Total    jsonResources `json:"total"`
	Free     jsonResources `json:"free"`
	GPUs     []jsonGPU     `json:"gpus"`
	Running  uint32        `json:"running"`
	Queued   uint32        `json:"queued"`
	Load     float64       `json:"load1"`
	MemFree  int64         `json:"memory_free"`
	Restarts uint32        `json:"agent_restarts"`
	Since    *string       `json:"since"`
	Seen     *string       `json:"seen"`
	Deadline int64         `json:"deadline,omitempty"`
	Clock    int64         `json:"clock_offset_ns"`
	PID      int           `json:"pid"`
	Python   string        `json:"python"`
	Route    string        `json:"route"`
	Taken    string        `json:"taken"` // what of it other people have, and who
	Rate     int64         `json:"rate"`  // bytes a second, at its busiest in the last minute
	Why      string        `json:"why,omitempty"`
	Topology *jsonTopology `json:"topology,omitempty"`
}

func toJSONNode(n wire.NodeInfo) jsonNode {
	o := jsonNode{ID: string(n.ID), Pool: n.Pool, Host: n.Host, Addr: n.Addr, State: n.State, Total: toJSONResources(n.Total),
		Free: toJSONResources(n.Free), GPUs: []jsonGPU{}, Running: n.Running, Queued: n.Queued, Load: n.Load1, MemFree: n.MemFree,
		Restarts: n.Restarts, Since: stamp(n.Since), Seen: stamp(n.Seen), Deadline: n.Deadline, Clock: n.Clock, PID: n.PID,
		Python: n.Python, Route: n.Route, Rate: n.Rate, Taken: n.Taken, Why: n.Why, Topology: toJSONTopology(n.Topology)}
	for _, g := range n.GPUs {
		o.GPUs = append(o.GPUs, jsonGPU{UUID: g.UUID, Name: g.Name, Memory: g.Memory, Busy: g.Busy, Index: g.Index, Declared: g.Declared, By: g.By})
	}
	return o
}

type jsonPool struct {
	Name    string `json:"name"`
	Backend string `json:"backend"`
	Min     int    `json:"min"`
	Max     int    `json:"max"`
	Up      int    `json:"up"`
	Pending int    `json:"pending"`
	Failed  int    `json:"failed"`
	Wanted  int    `json:"wanted"`
	Why     string `json:"why,omitempty"`

	Failures []jsonFailure `json:"failures,omitempty"`
}

type jsonFailure struct {
	Node  wire.NodeID `json:"node"`
	Host  string      `json:"host"`
	Why   string      `json:"why"`
	Tries int         `json:"tries"`
	Final bool        `json:"final"`
}

func toJSONPool(p wire.PoolInfo) jsonPool {
	j := jsonPool{p.Name, p.Backend, p.Min, p.Max, p.Up, p.Pending, p.Failed, p.Wanted, p.Why, nil}
	for _, f := range p.Failures {
		j.Failures = append(j.Failures, jsonFailure{f.Node, f.Place, f.Why, f.Tries, f.Final})
	}
	return j
}

// mapAll converts a slice, never to null.
func mapAll[A, B any](in []A, f func(A) B) []B {
	out := make([]B, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}
