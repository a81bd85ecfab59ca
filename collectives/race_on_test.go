//go:build race

package collectives

const raceEnabled = true

// worldSizes of TestEveryWorldSize: the race detector makes them slow and finds
// nothing more at the others; `make unit-full` does all.
var worldSizes = []int{1, 2, 3, 5, 8}

// linkShare is what TestSlowLink asks for: nothing here, where the processor is what is
// slow; `make unit-full` measures.
const linkShare = 0.0
