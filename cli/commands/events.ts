// godwit events: what happens in the gateway, as it happens.
import { EXIT } from '../../wire/errors.ts'
import { gatewayTarget } from '../client.ts'
import { command, gatewayOptions } from '../command.ts'
import { clean } from '../output.ts'

export const events = command({
  name: 'events',
  summary: 'show the events of the gateway as they occur',
  details:
    'Runs until Ctrl-C. Each event has an id; with --after, the events after that id are shown first. If the gateway has already dropped some of them, it sends the event reset instead: read the status again (godwit status).',
  options: {
    after: { kind: 'text', value: 'ID', help: 'show events after this id first (ids: see --json)' },
    json: { kind: 'flag', help: 'print one JSON object in each line, with the id of the event' },
    ...gatewayOptions,
  },
  examples: ['godwit events', 'godwit events --after 4f1c2d3e-17 --json'],
  run: async ({ options, io }) => {
    const { followEvents, untilCtrlC } = await import('../events.ts')
    const { renderEvent } = await import('../watch.ts')
    const target = await gatewayTarget(io, options)
    const { signal, release } = untilCtrlC(io)
    try {
      const note = (text: string) => io.err(`${clean(text)}\n`)
      for await (const { id, event } of followEvents({ target, after: options.after, signal, onNote: note }))
        io.out(options.json ? `${JSON.stringify({ id, ...event })}\n` : `${clean(renderEvent(event))}\n`)
      return EXIT.ok
    } finally {
      release()
    }
  },
})
