package main

import (
	"encoding/json"
	"testing"
)

func TestLookupParam(t *testing.T) {
	var params map[string]json.RawMessage
	if err := json.Unmarshal([]byte(`{"lr":0.1,"opt":{"lr":0.2,"a.b":{"c":3},"n":null},"x.y":4,"x":{"y":5},"s":"text"}`), &params); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"lr": "0.1", "opt.lr": "0.2", "opt.a.b.c": "3", "opt.n": "null", "x.y": "4",
		"opt.": "-", ".lr": "-", "opt.none": "-", "s.x": "-", "lr.x": "-", "": "-", "opt.lr.x": "-",
	} {
		got, ok := lookupParam(params, name)
		if !ok {
			got = json.RawMessage("-")
		}
		if string(got) != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
