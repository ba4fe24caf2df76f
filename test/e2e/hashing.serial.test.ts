// Reading a VM's large files takes as long as it takes: it is seen, the other side waits for it, and it ends when told.
import { join } from 'node:path'
import type { MigrationRecord } from '../../wire/admin.ts'
import { openDiskScene } from '../support/disk-scene.ts'
import { isEnded, type Lab, labMissing } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/hashing', { ms: 120_000 })
const skip = labMissing()

const SILENCE_MS = 5_000
const isHashing = (side: 'source' | 'target') => (record: MigrationRecord) =>
  record.progress?.phase === 'hashing' && record.progress.side === side && (record.progress.bytesSent ?? 0) > 0

/** No list of holes can be had, so that 300 GB are really read; QEMU is there. */
async function slowly(lab: Lab): Promise<AsyncDisposable> {
  const before = process.env['PATH']
  const dir = join(lab.dir, 'no-perl')
  process.env['PATH'] = dir
  const dispose = async () => {
    process.env['PATH'] = before
  }
  return { [Symbol.asyncDispose]: dispose }
}

for (const side of ['source', 'target'] as const)
  test(
    `long reading at the ${side} is seen, outlasts the other side's patience, and ends within 2 s when it is cancelled or its node is`,
    async () => {
      const site = { waits: { silenceMs: SILENCE_MS } }
      await using scene = await openDiskScene(
        {
          sites: [
            ['a', site],
            ['b', site],
          ],
        },
        300e9,
      )
      const { lab, guest, begin } = scene
      if (side === 'target') await lab.site('a').node.registry.needs(guest.name, 'live')
      await using _ = await slowly(lab)
      const id = await begin('b')
      const seen = await lab.until(id, isHashing(side))
      assert.is(seen.progress!.bytesTotal! >= 300e9, true)
      assert.type(seen.progress!.etaMs, 'number')
      const endMs = performance.now() + 1.6 * SILENCE_MS
      await lab.until(id, record => isEnded(record) || performance.now() > endMs)
      assert.is((await lab.api<MigrationRecord>('GET', `/v1/migrations/${id}`)).outcome, null, lab.logTail())
      const cancelMs = performance.now()
      await lab.api('DELETE', `/v1/migrations/${id}`)
      assert.is((await lab.until(id)).outcome, 'cancelled', lab.logTail())
      assert.ok(performance.now() - cancelMs < 2_000, `cancelled after ${performance.now() - cancelMs} ms`)
      assert.equal(await guest.runsAt(), ['a'])
      await lab.until(await begin('b'), isHashing(side))
      const stopMs = performance.now()
      await lab.site(side === 'source' ? 'a' : 'b').stop()
      assert.ok(performance.now() - stopMs < 2_000, `stopped after ${performance.now() - stopMs} ms`)
    },
    { skip },
  )

test.run()
