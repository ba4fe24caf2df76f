// The files that are written into a cgroup v2 hierarchy, in a plain folder that stands for it. What the kernel makes of
// them was tried by hand in a guest with Linux 6.1: docs/internals/measurements.md, "Limits of a QEMU".

import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { cgroupProblem, enterCgroup } from '../../../edge-node/vm/cgroup.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/vm/cgroup')

test('a QEMU gets a group of its own, with room for its memory and its threads; groups that ended are removed', async () => {
  await using folder = await tempFolder()
  const root = folder.path
  assert.match(cgroupProblem(root) ?? '', /no cgroup v2/)
  assert.is(enterCgroup(4711, { memoryBytes: 512 * MIB, vcpus: 2 }, root), false)
  for (const name of ['cgroup.controllers', 'cgroup.subtree_control']) await writeFile(join(root, name), '')
  await mkdir(join(root, 'godwit', 'qemu-12'), { recursive: true })
  assert.is(cgroupProblem(root), undefined)
  assert.is(enterCgroup(4711, { memoryBytes: 512 * MIB, vcpus: 2 }, root), true)
  const read = (name: string) => readFile(join(root, 'godwit', 'qemu-4711', name), 'utf8')
  assert.is(await read('cgroup.procs'), '4711')
  assert.is(await read('memory.max'), String(2048 * MIB))
  assert.is(await read('pids.max'), '194')
  assert.is(await readFile(join(root, 'cgroup.subtree_control'), 'utf8'), '+memory +pids')
  assert.is(await readFile(join(root, 'godwit', 'qemu-12', 'cgroup.procs'), 'utf8').catch(() => 'gone'), 'gone')
})

test.run()
