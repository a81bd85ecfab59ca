package core

import (
	"testing"

	"launcher/wire"
)

// seeds are records of every kind that has something in it.
func seeds() [][]byte {
	var out [][]byte
	for _, r := range []Record{
		RecHead{Epoch: 1, Cluster: "c", Nonce: "n"}, RecPools{Pools: []wire.Pool{{Name: "p"}}}, RecJob{Job: 1, Spec: wire.JobSpec{Kind: wire.KindRun, Command: []string{"x"}}},
		RecSubmission{Token: "t", Pool: "p", Nodes: []wire.NodeID{"p-0"}, Epochs: []wire.Epoch{1}}, RecAllocs{Token: "t", Allocs: []Alloc{{Handle: []byte("h"), Nodes: []wire.NodeID{"p-0"}}}},
		RecNodeUp{Node: "p-0", Epoch: 1}, RecEnds{Node: "p-0", Epoch: 1, Seq: 1, Parts: []EndPart{{Job: 1, Runs: []EndRun{{To: 1, Attempt: 1}}, Items: []EndItem{{Attempt: 1}}}}},
		RecLost{Job: 1, Ranges: []wire.Range{{To: 1}}}, RecGang{Job: 1, World: 1, Nodes: []wire.GangNode{{Node: "p-0", Count: 1}}, Epochs: []wire.Epoch{1}}, RecSpawn{Job: 1}, RecReport{},
		RecCheckpoint{Job: 1, Path: "/p"}, RecJobEnd{Job: 1}, RecDown{}, RecRecovered{}, RecGangFault{Job: 1}, RecTold{Job: 1}, RecDrain{}, RecLearned{Job: 1, Learned: learned{Left: second}}, RecLogsDone{Job: 1},
	} {
		out = append(out, EncodeRecord(r))
	}
	return out
}

func FuzzDecodeRecord(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := DecodeRecord(EncodeRecord(r))
		if err != nil || string(EncodeRecord(again)) != string(EncodeRecord(r)) {
			t.Fatalf("%T does not survive encoding: %v", r, err)
		}
	})
}

func FuzzDecodeDurable(f *testing.F) {
	d := NewDurable(testMachines)
	for _, b := range seeds() {
		if r, err := DecodeRecord(b); err == nil {
			_ = d.Apply(r)
			f.Add(d.Encode())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := DecodeDurable(b, testMachines); err == nil {
			if _, err := DecodeDurable(d.Encode(), testMachines); err != nil {
				t.Fatalf("a snapshot that was read cannot be read again: %v", err)
			}
		}
	})
}
