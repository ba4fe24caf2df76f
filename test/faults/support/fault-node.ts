// `godwit node` with places where a test can take hold of it: every durable write (before and after it), and the loaded
// VM before LOADED is said.
// Enters: the configuration file, options as JSON; over IPC which places are armed and how. Leaves: the places that
// were reached, over IPC.
// Always holds: but for the armed places, the clock and the waits that a test gives, it is the very node that `godwit
// node` runs.
import { loadNodeConfig } from '../../../cli/config.ts'
import { processIo } from '../../../cli/io.ts'
import { type NodeOptions, startNode } from '../../../edge-node/agent.ts'
import { createLog } from '../../../ops/log.ts'
import { createEngines } from '../../../transport/select.ts'

export type FaultNodeOptions = {
  qemuBinary?: string
  waits?: NodeOptions['waits']
  /** Its wall clock is wrong by this. */
  clockShiftMs?: number
  version?: string
}
/**
 * `hold`: stays there until released. `die`: SIGKILL, nothing is tidied up. `fail`: the write fails as on a disk that
 * refuses it.
 */
export type Doing = 'hold' | 'die' | 'fail' | 'free'
/** `side:STATE`, or `target:loaded`. */
export type Order = { place: string; when: 'before' | 'after'; doing: Doing }
type Report = { reached: string; when: 'before' | 'after' }

const [file = '', text = '{}'] = process.argv.slice(2)
const options = JSON.parse(text) as FaultNodeOptions
if (options.clockShiftMs) shiftClock(options.clockShiftMs)
// With a limit on file sizes (a "disk" that is full) the kernel sends this; without a handler it would kill the agent
// instead of failing the write.
process.on('SIGXFSZ', () => {})

const armed = new Map<string, { doing: Doing; freed: PromiseWithResolvers<void> }>()
process.on('message', ({ place, when, doing }: Order) => {
  const key = `${when} ${place}`
  armed.get(key)?.freed.resolve()
  if (doing === 'free') armed.delete(key)
  else armed.set(key, { doing, freed: Promise.withResolvers() })
  process.send?.({ reached: 'armed', when })
})
process.channel?.unref()

async function pass(place: string, when: 'before' | 'after'): Promise<void> {
  const found = armed.get(`${when} ${place}`)
  if (!found) return
  if (found.doing === 'die') process.kill(process.pid, 'SIGKILL')
  process.send?.({ reached: place, when } satisfies Report)
  if (found.doing === 'fail') throw new Error('no space left on device')
  await found.freed.promise
}

function shiftClock(byMs: number): void {
  const now = Date.now.bind(Date)
  const Shifted = class extends Date {
    constructor(...given: [] | [number | string | Date]) {
      if (given.length === 0) super(now() + byMs)
      else super(given[0])
    }
    static override now = () => now() + byMs
  }
  globalThis.Date = Shifted as DateConstructor
}

const config = await loadNodeConfig(processIo(), { file })
try {
  const node = await startNode({
    config,
    engines: createEngines(),
    version: options.version ?? 'lab',
    log: createLog({ level: 'info', format: 'text' }),
    qemuBinary: options.qemuBinary,
    waits: options.waits,
    onBroken: () => process.exit(1),
    onLoaded: () => pass('target:loaded', 'before'),
    onRecord: (side, state, when) => pass(`${side}:${state}`, when),
  })
  process.once('SIGTERM', () => void node.close().then(() => process.exit(0)))
} catch (error) {
  process.stderr.write(`${String(error)}\n`)
  process.exit(1)
}
