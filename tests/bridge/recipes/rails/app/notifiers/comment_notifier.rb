class CommentNotifier < Noticed::Event
end
