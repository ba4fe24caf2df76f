// The link model in C against the link model in TypeScript: the same packets at the same moments, every answer compared
// to the last bit.
import { spawn } from 'node:child_process'
import { driverProgram } from '../../sim-network/driver-program.ts'
import { createLink, type LinkModelOptions } from '../../sim-network/link.ts'
import { linkWords } from '../../sim-network/link-words.ts'
import { burstLoss } from '../../sim-network/loss.ts'
import { profiles } from '../../sim-network/profiles.ts'
import { createRandom, type Random } from '../../sim-network/random.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('sim-network: the native model', { ms: 60_000 })
const missing = await driverProgram().then(
  () => undefined,
  error => (error instanceof Error ? error.message : String(error)),
)

/**
 * Random operations on a link, done on the TypeScript model here; gives what the native one is told, and what it has to
 * answer.
 */
function script(options: LinkModelOptions, seed: string, packets: number): { told: string; expected: string } {
  const random = createRandom(`script/${seed}`)
  const link = createLink<number>(options, seed)
  const told = [linkWords(options, seed)]
  const expected: string[] = []
  let current = options
  let now = 0
  let entered = 0
  const step = () => {
    now += random.chance(0.02) ? random.between(0, 3000) : random.chance(0.5) ? 0 : random.between(0, 4)
    const draw = random.next()
    if (draw < 0.75) {
      const bytes = 20 + (random.uint32() % 1600)
      told.push(`e ${now} ${bytes}\n`)
      expected.push(`e ${link.enqueue(now, bytes, entered++) ? 1 : 0}`)
    } else if (draw < 0.9) {
      told.push(`a ${now}\n`)
      for (const { atMs, bytes, packet } of link.advance(now)) expected.push(`d ${atMs} ${bytes} ${packet}`)
      expected.push('a')
    } else if (draw < 0.995) {
      told.push('n\n')
      expected.push(`n ${link.nextMs() ?? Number.POSITIVE_INFINITY}`)
    } else if (draw < 0.998) {
      const isCut = random.chance(0.3)
      told.push(`x ${now} ${isCut ? 1 : 0}\n`)
      link.cut(now, isCut)
    } else {
      current = { ...current, ...changeOf(random) }
      told.push(`c ${now} 1 ${linkWords(current, seed)}`)
      link.change(now, current)
    }
  }
  for (let count = 0; count < packets; count++) step()
  told.push(`a ${now + 1e6}\ns\n`)
  for (const { atMs, bytes, packet } of link.advance(now + 1e6)) expected.push(`d ${atMs} ${bytes} ${packet}`)
  expected.push('a', JSON.stringify(link.counters()))
  return { told: told.join(''), expected: expected.join('\n') }
}

const changeOf = (random: Random): Partial<LinkModelOptions> => ({
  loss: random.chance(0.5) ? { ratio: random.between(0, 0.2) } : burstLoss(random.between(0, 0.1), random.between(1, 9)),
  queueBytes: 1500 + random.uint32() / 50_000,
})

/** The native answers, with numbers as JavaScript writes them. */
async function replay(told: string): Promise<string> {
  const child = spawn(await driverProgram(), ['replay'], { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.end(told)
  let text = ''
  for await (const chunk of child.stdout.setEncoding('utf8')) text += chunk
  const lines = text.trim().split('\n')
  return lines
    .map(line => {
      if (line.startsWith('{')) return JSON.stringify(JSON.parse(line))
      return line.replace(/^(d|n) (\S+)/, (_, kind, number) => `${kind} ${number === 'inf' ? Number.POSITIVE_INFINITY : Number(number)}`)
    })
    .join('\n')
}

/** Compares whole texts; shows the first line that differs. */
function assertSame(actual: string, expected: string, what: string): void {
  if (actual === expected) return
  const [left, right] = [actual.split('\n'), expected.split('\n')]
  const at = right.findIndex((line, i) => line !== left[i])
  assert.unreachable(`${what}: answer ${at} is '${left[at]}', not '${right[at]}' (${left.length} and ${right.length} answers)`)
}

const base: LinkModelOptions = { rate: { bitsPerSecond: 10_000_000 }, delayMs: 20, queueBytes: 100_000 }
const steps = [5, 35, 0, 5.5].map((megabits, at) => ({ atMs: at * 777.7, bitsPerSecond: megabits * 1e6 }))
const trace = Uint32Array.from({ length: 500 }, (_, at) => Math.floor(at * 1.7 + (at % 7) * 0.2))
const links: Record<string, LinkModelOptions> = {
  'rate, delay and queue': base,
  'a rate that divides nothing': { ...base, rate: { bitsPerSecond: 7_777_777.77 }, delayMs: 33.3333 },
  jitter: { ...base, jitterMs: 10 },
  'jitter with a period of its own': { ...base, jitterMs: 3.3, jitterPeriodMs: 17.1 },
  'random loss': { ...base, loss: { ratio: 0.03 } },
  'bursts of loss': { ...base, loss: burstLoss(0.05, 6) },
  'bursts with loss in both states': { ...base, loss: { burst: { goodToBad: 0.02, badToGood: 0.3, lossGood: 0.01, lossBad: 0.7 } } },
  'a short queue': { ...base, queueBytes: 4000 },
  'an MTU': { ...base, mtuBytes: 1200 },
  'blackouts that hold': { ...base, blackouts: [{ startMs: 100.5, durationMs: 333, everyMs: 1000 }] },
  'blackouts of both kinds': {
    ...base,
    blackouts: [
      { startMs: 50, durationMs: 200, mode: 'drop', everyMs: 900 },
      { startMs: 400, durationMs: 1000 },
    ],
  },
  'a schedule': { ...base, rate: { steps, repeatMs: 4000 } },
  'a schedule that ends': { ...base, rate: { steps } },
  'a trace': { ...base, rate: { trace: { opportunitiesMs: trace } } },
  'a trace with blackouts': {
    ...base,
    rate: { trace: { opportunitiesMs: trace } },
    blackouts: [{ startMs: 500, durationMs: 800, everyMs: 3000 }],
  },
}

test(
  'answers like the TypeScript model, for every feature and many seeds',
  async () => {
    for (const [name, options] of Object.entries(links)) {
      for (let seed = 0; seed < 12; seed++) {
        const { told, expected } = script(options, `${name}/${seed}`, 1500)
        assertSame(await replay(told), expected, `${name}, seed ${seed}`)
      }
    }
  },
  { skip: missing },
)

test(
  'answers like it on every named profile, in both directions',
  async () => {
    for (const [name, profile] of Object.entries(profiles)) {
      for (const [direction, options] of [['up', profile.up] as const, ['down', profile.down] as const]) {
        const { told, expected } = script(options, `${name}/${direction}`, 4000)
        assertSame(await replay(told), expected, `${name} ${direction}`)
      }
    }
  },
  { skip: missing },
)

test('a link that is none is refused before the driver is asked', () => {
  assert.throws(() => linkWords({ ...base, delayMs: -1 }, 1), /delayMs/)
})

test.run()
