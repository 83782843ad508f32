// Drives `node-bandwidth` 2.6: reads one order from the command line, prints what came of it. Both are JSON.
const Bandwidth = require("node-bandwidth");

async function send(client, order) {
  const terms = { from: order.from, callbackUrl: order.callbackUrl, tag: order.tag };
  const single = await client.Message.send({ ...terms, to: order.delivered, text: "single", receiptRequested: "all" });
  const several = await client.Message.sendMultiple(
    [order.delivered, order.failed, ""].map((to) => ({ ...terms, to, text: "several", receiptRequested: "all" }))
  );
  const picture = await client.Message.send({ ...terms, to: order.delivered, text: "picture", media: [order.media] });
  const group = await client.v2.Message.send({
    from: order.from, to: [order.delivered, order.other], text: "group", applicationId: "app-1", tag: order.tag,
  });
  return {
    single: single.id,
    several: several.filter((one) => one.result === "accepted").map((one) => one.message.id),
    errors: several.filter((one) => one.result === "failed").map((one) => one.error.message),
    picture: picture.id,
    group: group.id,
  };
}

async function read(client, order) {
  const messages = [];
  for (const id of order.ids) messages.push(shown(await client.Message.get(id)));
  const listed = [];
  let page = await client.Message.list({ from: order.from, size: 2 });
  for (;;) {
    listed.push(...page.messages.map((message) => message.id));
    if (!page.hasNextPage) return { messages, listed };
    page = await page.getNextPage();
  }
}

async function hurry(client, order) {
  const message = { from: order.from, to: order.delivered, text: "hurry" };
  await client.Message.send({ ...message });
  try {
    await client.Message.send({ ...message });
  } catch (error) {
    return { refusedFor: error.constructor === Bandwidth.RateLimitError, limitReset: error.limitReset };
  }
}

function shown(message) {
  return {
    id: message.id,
    from: message.from,
    to: message.to,
    state: message.state,
    deliveryState: message.deliveryState ?? null,
    deliveryCode: message.deliveryCode ?? null,
  };
}

const order = JSON.parse(process.argv[2]);
const client = new Bandwidth({
  userId: order.user, apiToken: order.token, apiSecret: order.secret, baseUrl: order.url,
});
({ send, read, hurry })[order.step](client, order).then((result) => console.log(JSON.stringify(result)));
