// Page workers end by themselves, whatever they are doing: nothing that ends a pool or its process may stop a thread
// within zstd, which aborts the process.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { begin, createTurn, done, end, idle } from '../../../edge-node/pages/turn.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('pages: the end of a pool', { ms: 180_000 })
const CHILD = fileURLToPath(new URL('./pool-child.ts', import.meta.url))

/** Runs pool-child.ts; gives how it ended and what it printed. */
async function run(...args: string[]): Promise<{ code: number | null; signal: NodeJS.Signals | null; out: string; err: string }> {
  const child = spawn(process.execPath, [CHILD, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  const read = async (stream: AsyncIterable<Buffer>) => {
    let text = ''
    for await (const chunk of stream) text += chunk
    return text
  }
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => resolve({ code, signal }))
  })
  const [out, err] = await Promise.all([read(child.stdout), read(child.stderr)])
  return { ...(await ended), out, err }
}

test('a thread begins no job once it is told to end', () => {
  const turn = createTurn()
  assert.ok(begin(turn))
  assert.not.ok(idle(turn, 1), 'at work')
  done(turn)
  assert.ok(idle(turn, 1))
  assert.ok(begin(turn))
  end(turn)
  assert.not.ok(idle(turn, 1), 'it may finish what it has begun')
  done(turn)
  assert.not.ok(begin(turn))
  assert.ok(idle(turn, 1))
})

test('a pool that is closed while its thread compresses ends in order, 20 times', async () => {
  const { code, signal, out, err } = await run('closes', '20')
  assert.equal([code, signal, out], [0, null, 'closed 20\n'], err)
})

for (const [mode, ends] of [
  ['exits', 3],
  ['throws', 1],
] as const) {
  // Terminated threads ended about one such process in twenty.
  test(`a process that ${mode} while threads compress ends with its own code, 8 times`, async () => {
    for (let i = 0; i < 8; i++) {
      const { code, signal, out, err } = await run(mode)
      assert.equal([code, signal, out], [ends, null, 'ending\n'], err)
    }
  })
}

test('a thread that hangs in its job holds up neither close() nor the end of the process', async () => {
  const { signal, out } = await run('hangs')
  assert.is(out, 'close: INTERNAL\njob: INTERNAL, ended: false\n')
  // Nothing else ends a process whose thread is in a call that does not return.
  assert.is(signal, 'SIGKILL')
})

test.run()
