// Machine types of before QEMU 4.0, which name guest memory otherwise unless told, start and move like any other.
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/old-machine', { ms: 120_000 })

for (const machine of ['pc-i440fx-3.1', 'pc-q35-2.12'])
  test(
    `${machine} moves`,
    async () => {
      await using lab = await openLab()
      using guest = await bootGuest(lab, 'a', { seed: 12, fillBytes: 8 * 1024 * 1024, spec: { machine } })
      assert.is((await lab.migrate({ vm: guest.name, to: 'b' })).outcome, 'completed', lab.logTail())
      await guest.assertSound()
    },
    { skip: labMissing() },
  )

test.run()
