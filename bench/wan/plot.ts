// Draws the results: for each cell and guest bars of the total times with their ranges, and the downtimes beside them.
// Pure. SVG 1.1.
import type { Row, Spread } from './summary.ts'

const BAR = 16
const GAP = 26
const LEFT = 220
const WIDTH = 330
const COLOURS: Record<string, string> = { godwit: '#1b7f5c', multifd: '#3b6fb6', plain: '#8a8f98', xbzrle: '#b0713a', cold: '#9a5fa8' }

const colourOf = (variant: string) => COLOURS[variant.split('-')[0]!] ?? '#555'
const escaped = (text: string) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;')
const text = (x: number, y: number, content: string, more = '') => `<text x="${x}" y="${y}" ${more}>${escaped(content)}</text>`

function bar(x: number, y: number, spread: Spread | undefined, max: number, label: string, colour: string): string {
  if (!spread) return text(x + 4, y + 12, 'not done', 'fill="#b00"')
  const at = (value: number) => (value / max) * WIDTH * 0.75
  const whisker = spread.low === spread.high ? '' : `<path d="M${x + at(spread.low)} ${y + 7}H${x + at(spread.high)}" stroke="#000"/>`
  const box = `<rect x="${x}" y="${y}" width="${Math.max(1, at(spread.median)).toFixed(1)}" height="${BAR - 3}" fill="${colour}"/>`
  return box + whisker + text(x + Math.max(at(spread.median), at(spread.high)) + 5, y + 11, label)
}

export function plotSvg(rows: readonly Row[]): string {
  const groups = [...Map.groupBy(rows, ({ cell, guest }) => `${cell}  ${guest}`)]
  const parts: string[] = []
  let y = 50
  for (const [title, members] of groups) {
    parts.push(text(10, y - 6, title, 'font-weight="bold"'))
    const most = (pick: (row: Row) => Spread | undefined) => Math.max(1, ...members.map(row => pick(row)?.high ?? 0))
    const max = { total: most(row => row.totalMs), downtime: most(row => row.downtimeMs) }
    for (const row of members) {
      const colour = colourOf(row.variant)
      parts.push(text(LEFT - 8, y + 11, row.variant, 'text-anchor="end"'))
      parts.push(bar(LEFT, y, row.totalMs, max.total, `${((row.totalMs?.median ?? 0) / 1000).toFixed(1)} s`, colour))
      parts.push(bar(LEFT + WIDTH, y, row.downtimeMs, max.downtime, `${Math.round(row.downtimeMs?.median ?? 0)} ms`, colour))
      y += BAR
    }
    y += GAP
  }
  const head =
    text(LEFT, 20, 'total time', 'font-weight="bold"') + text(LEFT + WIDTH, 20, 'longest silence of the guest', 'font-weight="bold"')
  const size = `width="${LEFT + 2 * WIDTH + 20}" height="${y}"`
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>${head}${parts.join('\n')}</svg>\n`
}
