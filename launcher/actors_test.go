package main

import (
	"encoding/json"
	"strings"
	"testing"

	"launcher/wire"
)

// TestActors: what owners and hosts say of an actor is one line.
func TestActors(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.nodesAnswer(t, func(q wire.Query) map[wire.NodeID]any {
		if q.What != wire.QueryActors {
			t.Errorf("%+v", q)
		}
		return map[wire.NodeID]any{
			"a-0": []wire.SDKActor{{ID: "02", Class: "Counter", Name: "c", Namespace: "n", Job: 7, State: wire.ActorAlive, Lives: 2, Detached: true}, {ID: "01", Class: "Late", Job: 8, State: wire.ActorPending, Why: "waits for room"}},
			"a-1": []wire.SDKActor{{ID: "02", Class: "Counter", State: wire.ActorAlive, Worker: 42, Hosted: true}},
		}
	})
	r := invoke("actors", "-c", "lab")
	lines := strings.Split(strings.TrimSpace(r.Out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "waits for room") || strings.Join(strings.Fields(lines[2]), " ") != "02 Counter c (detached) alive a-1 42 2" {
		t.Errorf("%q %q", r.Out, r.Err)
	}
	var got struct{ Actors []jsonActor }
	r = invoke("actors", "-c", "lab", "--job", "7", "--json")
	if err := json.Unmarshal([]byte(r.Out), &got); err != nil || len(got.Actors) != 1 || got.Actors[0].Node != "a-1" || got.Actors[0].Namespace != "n" {
		t.Errorf("%v %s", err, r.Out)
	}
}

// TestMetrics: a family of several nodes is described once.
func TestMetrics(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.nodesAnswer(t, func(wire.Query) map[wire.NodeID]any {
		text := func(node string) string {
			return "# HELP x_total what\n# TYPE x_total counter\nx_total{node=\"" + node + "\"} 3\n"
		}
		return map[wire.NodeID]any{"a-0": text("a-0"), "a-1": text("a-1")}
	})
	if r := invoke("metrics", "-c", "lab"); r.Out != "# HELP x_total what\n# TYPE x_total counter\nx_total{node=\"a-0\"} 3\nx_total{node=\"a-1\"} 3\n" {
		t.Errorf("%q %q", r.Out, r.Err)
	}
}
