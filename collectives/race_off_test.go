//go:build !race

package collectives

const raceEnabled = false

// worldSizes of TestEveryWorldSize.
var worldSizes = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}

// linkShare is what TestSlowLink asks for.
const linkShare = 0.65
