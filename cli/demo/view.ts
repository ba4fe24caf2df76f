// The live view of the demo: a map line, latencies, the user's figures, the migration. On a terminal the lines are
// redrawn in place; elsewhere a line is printed every few seconds and at each event. The renderers are pure.
import { formatBytes } from '../../ops/units.ts'
import type { Io } from '../io.ts'
import { renderBar } from '../progress.ts'
import type { UserSummary } from './user.ts'

const REDRAW_EVERY_MS = 200
const PLAIN_EVERY_MS = 4_000
const MAP_COLUMNS_MAX = 84

export type DemoScene = {
  /** 0 to 1 along the road. */
  user: number
  sites: { name: string; at: number; rttMs: number }[]
  vmSite: string | undefined
  requests: UserSummary
  handoff: { from: string; to: string; phase: string; share?: number | undefined; bytes?: number | undefined } | undefined
  because: string | undefined
}

/** `--a----->----[b]-----------c--`: sites by name, the VM in brackets, the user an arrow. */
export function renderMap({ user, sites, vmSite, handoff }: DemoScene, columns: number): string {
  const width = Math.max(20, Math.min(MAP_COLUMNS_MAX, columns))
  const line = new Array<string>(width).fill('-')
  const place = (share: number) => Math.max(1, Math.min(width - 2, Math.round(share * (width - 1))))
  for (const { name, at } of sites) {
    const x = place(at)
    line[x] = name
    const [left, right] = name === vmSite ? ['[', ']'] : name === handoff?.to ? ['(', ')'] : ['-', '-']
    line[x - 1] = left
    line[x + 1] = right
  }
  // Next to a site's name: the user's arrow must not hide it.
  const free = [0, 1, 2, -1, -2].map(step => place(user) + step).find(x => line[x] === '-')
  if (free !== undefined) line[free] = '>'
  return line.join('')
}

const renderLatency = ({ sites, vmSite }: DemoScene): string =>
  `RTT from the user to the sites: ${sites.map(({ name, rttMs }) => `${name === vmSite ? `[${name}]` : name} ${Math.round(rttMs)} ms`).join('  ')}`

function renderRequests({ requests }: DemoScene): string {
  const { made, lost, p50Ms, longestGapMs } = requests
  const answers = Number.isNaN(p50Ms) ? '' : `, median response time ${Math.round(p50Ms)} ms`
  return `user: ${made} requests${answers}, ${lost} lost, longest gap ${Math.round(longestGapMs)} ms`
}

function renderHandoff({ handoff, because }: DemoScene): string {
  if (!handoff) return `policy: ${because ?? 'no measurements yet'}`
  const { from, to, phase, share, bytes } = handoff
  const bar = share === undefined ? '' : ` ${renderBar(share, 24)} ${Math.floor(share * 100)} %`
  return `handoff ${from} -> ${to}: ${phase}${bar}${bytes === undefined ? '' : ` of ${formatBytes(bytes)}`}`
}

export const renderScene = (scene: DemoScene, columns: number): string[] =>
  [renderMap(scene, columns), renderLatency(scene), renderRequests(scene), renderHandoff(scene)].map(line => line.slice(0, columns))

export type DemoView = {
  show(scene: DemoScene): void
  /** A line of its own, above the view. */
  note(text: string): void
  finish(): void
}

/** `isQuiet` (with --json): notes only. */
export function createView(
  io: Pick<Io, 'err' | 'isTty' | 'columns'>,
  say: (text: string) => void,
  now: () => number,
  isQuiet: boolean,
): DemoView {
  let drawnMs = Number.NEGATIVE_INFINITY
  let lines = 0
  const wipe = () => {
    if (lines > 0) io.err(`\u001b[${lines}A\r\u001b[J`)
    lines = 0
  }
  const isLive = io.isTty && !isQuiet
  return {
    show(scene) {
      if (isQuiet || now() - drawnMs < (isLive ? REDRAW_EVERY_MS : PLAIN_EVERY_MS)) return
      drawnMs = now()
      if (!isLive) return say(`${renderMap(scene, 64)}  ${renderRequests(scene)}; ${renderHandoff(scene)}`)
      const drawn = renderScene(scene, io.columns() - 1)
      wipe()
      io.err(`${drawn.join('\n')}\n`)
      lines = drawn.length
    },
    note(text) {
      wipe()
      say(text)
    },
    // The last drawing stays.
    finish() {
      lines = 0
    },
  }
}
