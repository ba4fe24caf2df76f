// Messages against the committed AsyncAPI document, as an integrator's validator would: it knows the JSON file and
// nothing of our code. Not a test itself.
import { readFile } from 'node:fs/promises'
import { z } from 'zod'

type Document = {
  channels: Record<string, { address: string; messages: Record<string, { $ref: string }> }>
  components: { messages: Record<string, { payload: { $ref: string } }>; schemas: Record<string, object> }
}

export async function createChecker() {
  const text = await readFile(new URL('../../docs/reference/asyncapi.json', import.meta.url), 'utf8')
  const { channels, components } = JSON.parse(text) as Document
  const table = Object.entries(channels).map(([kind, { address, messages }]) => {
    const message = components.messages[Object.values(messages)[0]?.$ref.split('/').at(-1) ?? '']
    const schema = components.schemas[message?.payload.$ref.split('/').at(-1) ?? '']
    if (!schema) throw new Error(`channel ${kind} has no schema`)
    const pattern = new RegExp(`^${address.replace(/\{\w+\}/g, '[^/]+')}$`)
    return { kind, pattern, schema: z.fromJSONSchema(schema as Parameters<typeof z.fromJSONSchema>[0]) }
  })
  const seen = new Set<string>()
  return {
    /** Throws when no channel has this topic, or its schema does not fit. */
    check(topic: string, text: string): void {
      const channel = table.find(({ pattern }) => pattern.test(topic))
      if (!channel) throw new Error(`${topic} is in no channel of docs/reference/asyncapi.json`)
      const result = channel.schema.safeParse(JSON.parse(text))
      if (!result.success) throw new Error(`${topic}: ${text}: ${JSON.stringify(result.error.issues[0])}`)
      seen.add(channel.kind)
    },
    seen: () => seen,
  }
}
