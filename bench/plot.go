package main

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// draw writes a plot with logarithmic axes as SVG: one line per name, through the medians. The last dashed lines are dashed.
func draw(file, title, axis string, names []string, dashed int, points []point) error {
	const width, height, left, top, right, bottom = 760, 440, 60, 40, 230, 50
	colours := []string{"#0a7", "#c33", "#36c"} // per engine; the cached builds are dashed
	minX, maxX, minY, maxY := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, p := range points {
		minX, maxX = min(minX, p.x), max(maxX, p.x)
		for _, v := range p.took {
			if len(v) == 0 {
				continue
			}
			minY, maxY = min(minY, median(v)), max(maxY, median(v))
		}
	}
	minY, maxY = math.Pow(10, math.Floor(math.Log10(minY))), math.Pow(10, math.Ceil(math.Log10(maxY)))
	x := func(v float64) float64 {
		return left + (width-left-right)*(math.Log(v)-math.Log(minX))/(math.Log(maxX)-math.Log(minX))
	}
	y := func(v float64) float64 {
		return height - bottom - (height-top-bottom)*(math.Log(v)-math.Log(minY))/(math.Log(maxY)-math.Log(minY))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="22" font-size="15">%s</text>`+"\n", left, title)
	for v := minY; v <= maxY*1.01; v *= 10 {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, y(v), width-right, left-6, y(v)+4, v)
	}
	for _, p := range points {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#eee"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(p.x), top, height-bottom, x(p.x), height-bottom+18, p.x)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-12, axis)
	for i, name := range names {
		dash, colour := "", colours[i%(len(names)-dashed)%len(colours)]
		if i >= len(names)-dashed {
			dash = ` stroke-dasharray="5 3"`
		}
		var line []string
		for _, p := range points {
			if len(p.took[i]) == 0 {
				continue
			}
			line = append(line, fmt.Sprintf("%.1f,%.1f", x(p.x), y(median(p.took[i]))))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke-width="2" stroke="%s"%s/>`, strings.Join(line, " "), colour, dash)
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke-width="2" stroke="%s"%s/><text x="%d" y="%d">%s</text>`+"\n", width-right+12, top+10+18*i, colour, dash, width-right+42, top+14+18*i, name)
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(file, []byte(b.String()), 0o644)
}
