// What the churn calls left: each kind of it is found, and what is as it was is not.
import { assert, suite } from '../support/suite.ts'
import { grown, type Left } from './left.ts'

const test = suite('churn: what is left')

const node = { name: 'node a', pid: 7, threads: 13, sockets: 9, files: 6, others: 21 }
const rest: Left = { processes: [node], qemus: 2, vmFolders: 2, files: ['a/node.yaml'] }

test('nothing is left where all is as it was, or less', () => {
  assert.equal(grown(rest, rest, 2), [])
  assert.equal(grown(rest, { ...rest, processes: [{ ...node, threads: 12, sockets: 12, others: 20 }] }, 2), [])
})

test('each kind is found', () => {
  const now = (change: Partial<typeof node>): Left => ({ ...rest, processes: [{ ...node, ...change }] })
  assert.equal(grown(rest, now({ pid: 8 }), 2), ['node a: another process'])
  assert.equal(grown(rest, now({ threads: 14 }), 2), ['node a: 13 -> 14 threads'])
  assert.equal(grown(rest, now({ sockets: 18 }), 2), ['node a: 9 -> 18 sockets'])
  assert.equal(grown(rest, now({ files: 7 }), 2), ['node a: 6 -> 7 files'])
  assert.equal(grown(rest, now({ others: 22 }), 2), ['node a: 21 -> 22 others'])
  assert.equal(grown(rest, { ...rest, qemus: 3 }, 2), ['3 QEMUs for 2 VMs'])
  assert.equal(grown(rest, { ...rest, vmFolders: 1 }, 2), ['1 VM folders for 2 VMs'])
  assert.equal(grown(rest, { ...rest, files: ['a/node.yaml', 'a/run/old.sock'] }, 2), ['1 files: a/run/old.sock'])
})

test.run()
