// A process whose native parts (LevelDB, QUIC, TLS, HTTP/3) are at work can end in each way: it ends with its own code,
// not by a signal, and soon.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { openStore } from '../../ops/store.ts'
import { createEngines } from '../../transport/select.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('ops: the end of a process', { ms: 120_000 })
const CHILD = fileURLToPath(new URL('./exit-child.ts', import.meta.url))
const TIMES = 3
const ENDS_MS = 60_000

async function run(...words: string[]): Promise<{ code: number | null; signal: string | null; out: string; err: string }> {
  const child = spawn(process.execPath, [CHILD, ...words], { stdio: ['ignore', 'pipe', 'pipe'], timeout: ENDS_MS, killSignal: 'SIGKILL' })
  const read = async (stream: AsyncIterable<Buffer>) => {
    let text = ''
    for await (const chunk of stream) text += chunk
    return text
  }
  const ended = new Promise<[number | null, string | null]>(resolve => child.once('close', (code, signal) => resolve([code, signal])))
  const [out, err] = await Promise.all([read(child.stdout), read(child.stderr)])
  const [code, signal] = await ended
  return { code, signal, out, err }
}

const CODES = { close: 0, exit: 3, throw: 1 } as const

for (const [way, code] of Object.entries(CODES)) {
  test(`LevelDB at work: ${way}, and the folder can be opened again`, async () => {
    for (let i = 0; i < TIMES; i++) {
      await using folder = await tempFolder()
      const ended = await run('level', way, folder.path)
      assert.equal([ended.code, ended.signal, ended.out], [code, null, 'ending\n'], ended.err)
      await (await openStore(folder.path)).close()
    }
  })
}

for (const engine of createEngines()) {
  const able = await engine.available()
  test(
    `${engine.name} at work: close, exit, throw`,
    async () => {
      for (const [way, code] of Object.entries(CODES)) {
        const ended = await run(engine.name, way)
        assert.equal([ended.code, ended.signal, ended.out], [code, null, 'ending\n'], `${way}: ${ended.err}`)
      }
    },
    { skip: able.ok ? undefined : able.reason },
  )
}

test.run()
