package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// nodesAnswer makes the head answer questions with what f says of each node.
func (f *fakeHead) nodesAnswer(t *testing.T, by func(q wire.Query) map[wire.NodeID]any) {
	f.on(wire.MsgQuery, func(st *session.Stream, body []byte) error {
		var q wire.Query
		if err := wire.Unmarshal(body, &q); err != nil {
			return err
		}
		ans := wire.QueryAnswer{Nodes: map[wire.NodeID]wire.NodeAnswer{}}
		for n, v := range by(q) {
			if e, ok := v.(error); ok {
				ans.Nodes[n] = wire.NodeAnswer{Err: errs.ToWire(e)}
				continue
			}
			b, err := json.Marshal(v)
			if err != nil {
				t.Error(err)
			}
			ans.Nodes[n] = wire.NodeAnswer{JSON: b}
		}
		return st.WriteMsg(wire.MsgOK, ans)
	})
	f.on(wire.MsgJobs, say([]wire.JobInfo{}))
	f.on(wire.MsgNodes, say([]wire.NodeInfo{{ID: "a-0"}, {ID: "a-1", Clock: 5_000_000}}))
}

var silent = errs.New(errs.Timeout, "node a-2 did not answer within 3s")

func TestTasksOfPrograms(t *testing.T) {
	f := newFakeHead(t, "lab")
	id, other := strings.Repeat("ab", 16), strings.Repeat("cd", 16)
	f.nodesAnswer(t, func(q wire.Query) map[wire.NodeID]any {
		var args wire.SDKTaskQuery
		if q.What != wire.QueryTasks || json.Unmarshal(q.Args, &args) != nil || args.Job != 0 && args.Job != 7 {
			t.Errorf("asked %s %s", q.What, q.Args)
		}
		return map[wire.NodeID]any{
			"a-0": wire.SDKTasks{Tasks: []wire.SDKTask{{ID: other, Name: "square", State: wire.TaskWaiting, Attempt: 1, WaitsFor: []string{"cd", "ef"}, Submitted: 1},
				{ID: id, Name: "square", State: wire.TaskRunning, Away: true, Parent: "12", Submitted: 1}},
				Counts: []wire.SDKTaskCount{{Name: "square", State: wire.TaskWaiting, Count: 1}}},
			"a-1": wire.SDKTasks{Tasks: []wire.SDKTask{{ID: id, Name: "square", State: wire.TaskRunning, Node: "a-1", Worker: 42, Submitted: 2, Started: 3}},
				Counts: []wire.SDKTaskCount{{Name: "square", State: wire.TaskRunning, Count: 1}}},
			"a-2": silent,
		}
	})
	r := invoke("tasks", "-c", "lab")
	lines := strings.Split(r.Out, "\n")
	if r.Code != 0 || len(lines) < 3 || !strings.Contains(lines[1], "running") || !strings.Contains(lines[2], "waits for cd and 1 more") || !strings.Contains(r.Err, "a-2 did not answer") {
		t.Errorf("%d %q %q", r.Code, r.Out, r.Err)
	}
	var got struct {
		SDK       []jsonSDKTask
		Counts    []wire.SDKTaskCount
		Unreached []unreached
	}
	r = invoke("tasks", "-c", "lab", "--json", "--job", "7")
	if err := json.Unmarshal([]byte(r.Out), &got); err != nil || len(got.SDK) != 2 || len(got.Counts) != 2 || len(got.Unreached) != 1 || got.SDK[0].State != wire.TaskRunning || got.SDK[0].Parent != "12" || got.SDK[0].Worker != 42 {
		t.Errorf("%v %s", err, r.Out)
	}
	if r := invoke("tasks", "-c", "lab", "--state", "gone"); r.Code != exitLauncher || !strings.Contains(r.Err, "no state of a task") {
		t.Errorf("%d %q", r.Code, r.Err)
	}
	if r := invoke("tasks", "-c", "lab", "7", "--name", "x"); r.Code != exitLauncher || !strings.Contains(r.Err, "--name NAME") {
		t.Errorf("%d %q", r.Code, r.Err)
	}
}

// TestWhyOfATaskThatIsAway: the node that runs a task says what it waits for; its owner, where
// that is not reached.
func TestWhyOfATaskThatIsAway(t *testing.T) {
	f := newFakeHead(t, "lab")
	runs := any(wire.SDKWhy{Lines: []string{"f runs in pid 42"}})
	f.nodesAnswer(t, func(wire.Query) map[wire.NodeID]any {
		return map[wire.NodeID]any{"a-0": wire.SDKWhy{Lines: []string{"f is with another node"}, Away: true}, "a-1": runs}
	})
	f.on(wire.MsgGroup, say([]wire.GroupInfo{}))
	id := strings.Repeat("ab", 16)
	if r := invoke("why", "-c", "lab", id); r.Code != 0 || !strings.Contains(r.Out, "pid 42") || strings.Contains(r.Out, "another node") {
		t.Errorf("%d %q %q", r.Code, r.Out, r.Err)
	}
	runs = silent
	if r := invoke("why", "-c", "lab", id); r.Code != 0 || !strings.Contains(r.Out, "another node") {
		t.Errorf("%d %q %q", r.Code, r.Out, r.Err)
	}
}

// TestManyTasksAreCounted: a million queued tasks are a line.
func TestManyTasksAreCounted(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.nodesAnswer(t, func(wire.Query) map[wire.NodeID]any {
		return map[wire.NodeID]any{
			"a-0": wire.SDKTasks{Tasks: []wire.SDKTask{{ID: "one", Name: "noop"}}, Counts: []wire.SDKTaskCount{{Name: "noop", State: wire.TaskQueued, Count: 400_000, Why: "2 of 2 cores are in use"}}},
			"a-1": wire.SDKTasks{Counts: []wire.SDKTaskCount{{Name: "noop", State: wire.TaskQueued, Count: 600_000}}},
		}
	})
	r := invoke("tasks", "-c", "lab")
	if !strings.Contains(r.Out, "1000000  2 of 2 cores are in use") || strings.Contains(r.Out, "one") || !strings.Contains(r.Err, "counted by name") {
		t.Errorf("%q %q", r.Out, r.Err)
	}
	if r := invoke("tasks", "-c", "lab", "--limit", "1"); !strings.Contains(r.Out, "one") || !strings.Contains(r.Err, "1 of 1000000") {
		t.Errorf("%q %q", r.Out, r.Err)
	}
}

func TestObjects(t *testing.T) {
	f := newFakeHead(t, "lab")
	id := strings.Repeat("01", 16)
	f.nodesAnswer(t, func(q wire.Query) map[wire.NodeID]any {
		return map[wire.NodeID]any{
			"a-0": wire.SDKObjects{Count: 3, Resident: 1 << 30, Limit: 2 << 30, Objects: []wire.SDKObject{{ID: id, Size: 1 << 30, State: wire.ObjectResident, Made: "put",
				Nodes: []wire.NodeID{"a-1"}, Holders: []wire.Holder{{What: "driver", Who: "pid 42", Count: 1}, {What: "pin", Who: "pid 43", Count: 2}}}}},
			"a-1": wire.SDKObjects{Count: 1, Objects: []wire.SDKObject{{ID: id, Size: 1 << 30, State: wire.ObjectResident, Copy: true}}},
			"a-2": silent,
		}
	})
	r := invoke("objects", "-c", "lab")
	for _, want := range []string{"a-0: 3 objects, 1GiB in memory", id + "  a-0   resident, also a-1", "driver pid 42, pin pid 43 ×2", "resident (copy)"} {
		if !strings.Contains(r.Out, want) {
			t.Errorf("no %q in %s", want, r.Out)
		}
	}
	if !strings.Contains(r.Err, "a-0: the 1 largest of 3") || !strings.Contains(r.Err, "a-2 did not answer") {
		t.Errorf("%q", r.Err)
	}
	var got struct {
		Nodes []struct {
			Node    string
			Limit   int64
			Objects []jsonObject
		}
		Unreached []unreached
	}
	r = invoke("objects", "-c", "lab", "--json", id)
	if err := json.Unmarshal([]byte(r.Out), &got); err != nil || len(got.Nodes) != 2 || got.Nodes[0].Objects[0].Holders[1].Count != 2 || !got.Nodes[1].Objects[0].Copy || len(got.Unreached) != 1 {
		t.Errorf("%v %s", err, r.Out)
	}
	if r := invoke("objects", "-c", "lab", "nonsense"); r.Code != exitLauncher || !strings.Contains(r.Err, "no id of an object") {
		t.Errorf("%q", r.Err)
	}
}

func TestTimeline(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.nodesAnswer(t, func(q wire.Query) map[wire.NodeID]any {
		return map[wire.NodeID]any{
			"a-0": wire.Timeline{Events: []wire.TaskEvent{{ID: "x", Name: "first", Worker: 42, State: wire.TaskDone, Submitted: 1_000_000, Start: 2_000_000, End: 3_000_000}}},
			"a-1": wire.Timeline{Dropped: 9, Events: []wire.TaskEvent{{ID: "y", Name: "second", Worker: 42, State: wire.TaskFailed, Start: 8_000_000, End: 9_000_000}}},
		}
	})
	r := invoke("timeline", "-c", "lab")
	var got struct{ TraceEvents []traceEvent }
	if err := json.Unmarshal([]byte(r.Out), &got); err != nil {
		t.Fatalf("%v %s", err, r.Out)
	}
	bars := map[string]traceEvent{}
	for _, e := range got.TraceEvents {
		if e.Phase == "X" {
			bars[e.Name] = e
		}
	}
	if b := bars["first"]; b.Time != 2000 || b.Dur != 1000 || b.TID != 42 || b.Args["waited_us"] != 1000.0 {
		t.Errorf("%+v", b)
	}
	// The second node's clock is 5 ms ahead.
	if b := bars["second"]; b.Time != 3000 || b.PID == bars["first"].PID || b.Color == "" {
		t.Errorf("%+v", b)
	}
	if !strings.Contains(r.Err, "9 older ones") {
		t.Errorf("%q", r.Err)
	}
	file := t.TempDir() + "/t.json"
	if r := invoke("timeline", "-c", "lab", "-o", file, "--json"); !strings.Contains(r.Out, `"events":2`) {
		t.Errorf("%q", r.Out)
	}
	if r := invoke("timeline", "-c", "lab", "-o", "/nonexistent/t.json"); r.Code != exitLauncher || !strings.Contains(r.Err, "cannot write the timeline") {
		t.Errorf("%q", r.Err)
	}
}

func TestWhyOfAProgramsTask(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.on(wire.MsgGroup, func(st *session.Stream, _ []byte) error { return st.WriteMsg(wire.MsgOK, []wire.GroupInfo{}) })
	id := strings.Repeat("01", 16)
	f.nodesAnswer(t, func(q wire.Query) map[wire.NodeID]any {
		ans := map[wire.NodeID]any{"a-0": wire.SDKWhy{}, "a-1": wire.SDKWhy{}, "a-2": silent}
		if string(q.Args) == fmt.Sprintf(`{"id":%q}`, id) {
			ans["a-1"] = wire.SDKWhy{Lines: []string{"task f waits for 2 cores"}}
		}
		return ans
	})
	if r := invoke("why", "-c", "lab", id); r.Out != "task f waits for 2 cores\n" {
		t.Errorf("%q %q", r.Out, r.Err)
	}
	r := invoke("why", "-c", "lab", strings.Repeat("02", 16))
	if r.Code != exitLauncher || !strings.Contains(r.Err, "no node knows") || !strings.Contains(r.Err, "a-2 did not answer") {
		t.Errorf("%d %q", r.Code, r.Err)
	}
}
