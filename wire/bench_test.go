package wire

import "testing"

// BenchmarkSmallMessage is a small message both ways.
func BenchmarkSmallMessage(b *testing.B) {
	var got []any
	for b.Loop() {
		if err := Unmarshal(Marshal([]any{"group_wait", []byte("0123456789abcdef"), 100}), &got); err != nil {
			b.Fatal(err)
		}
	}
}
